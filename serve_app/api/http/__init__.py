"""HTTP as such: bodies, headers and caching fields, whatever the routes say."""

"""The story of one request; see `service`."""

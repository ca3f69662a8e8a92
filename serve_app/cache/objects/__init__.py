"""L3: a local folder or S3, and its eviction; see `folder` and `s3`."""

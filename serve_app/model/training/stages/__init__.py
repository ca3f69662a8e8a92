"""The training stages and their data; see `trainer`."""

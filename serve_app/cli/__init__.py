"""The command line; see `cli`."""

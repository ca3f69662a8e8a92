"""The `native` family: see `native`."""

"""The step engine and its scheduler; see `engine`."""

"""A Wan checkpoint's folder; see `checkpoint`."""

"""Jobs: their records, their followers and their stores; see `tracker`."""

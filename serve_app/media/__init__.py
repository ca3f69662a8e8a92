"""MP4 files from frames; see `media`."""

"""From Settings to parts; see `wiring`."""

"""The procedural world that the demo model is trained on; see `world`."""

"""From Settings to parts: a module for each process, `tiers` and `model` for what they share.

Only the wiring reads Settings; all else gets plain arguments.
"""

"""Prompt normalisation; see `prompt`."""

"""Tests mirror the code's paths; this file keeps `tests/serve_app` from standing in for the package `serve_app`."""

"""The command line `encore`; see `cli`."""

from serve_app.cli.cli import main

__all__ = ["main"]

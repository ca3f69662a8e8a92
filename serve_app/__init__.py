"""Encore: a text-to-video server that renders once and plays many times.

`serve_app` is the server as plain Python; `deployments` is how Ray runs it. A file imports only from lower
floors (see `[tool.importlinter]` in pyproject.toml), and nothing here imports Ray.
"""

__version__ = "0.1.0"

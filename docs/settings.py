"""Writes docs/settings.md, the page of all settings, from `serve_app.settings.Settings`.

python docs/settings.py
"""

from __future__ import annotations

from pathlib import Path

from serve_app.settings import SECRETS, Settings

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings

    make serve ARGS="--set max_queued=200"        # encore serve; or ENCORE_MAX_QUEUED=200, or `args` in a config YAML

Every setting has a row; unknown names are refused. A setting `x` is `--set x=...` on the command line, `ENCORE_X` in
the environment, or `x:` under `args` in the YAML of `serve deploy` (`deployments/config/`). Secrets, and URLs with
credentials, come from `ENCORE_X` or from the file that `ENCORE_X_FILE` names, never from a command line or a YAML.

This page is written by `python docs/settings.py`.

| setting | default | |
|---|---|---|
"""


def row(name: str) -> str:
    """Return the row of one setting."""
    field = Settings.model_fields[name]
    default = "environment only" if name in SECRETS else f"`{field.default}`"
    return f"| `{name}` | {default} | {field.description} |\n"


def page() -> str:
    """Return the whole page."""
    return HEAD + "".join(map(row, Settings.model_fields))


if __name__ == "__main__":
    PAGE.write_text(page())

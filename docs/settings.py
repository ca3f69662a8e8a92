"""Writes docs/settings.md, the page of all settings, from `serve_app.settings.Settings`.

    python docs/settings.py

Run it when a setting changes; tests/docs/test_settings_page.py fails until then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from serve_app.setting_sources import variable
from serve_app.settings import SECRET_URLS, SECRETS, Settings

PAGE = Path(__file__).with_name("settings.md")
LOCAL = Path(__file__).parents[1] / "deployments" / "config" / "local.yaml"
HEAD = """# Settings

    make serve ARGS="--set max_queued=200"      # or: encore serve --set max_queued=200
    ENCORE_LINGER_SECONDS=5 make serve          # by environment

In the YAML of `serve deploy` ([deployments/config/](../deployments/config/)) a setting stands under `args`. `--set`
goes before the YAML, the YAML before the environment, the environment before the default. So no variable changes what
the YAML names: `local.yaml`, which `make serve` deploys, names {local}.
Change those with `--set`.

A name that is no setting is refused; an `ENCORE_` variable that nothing reads is warned of.

Secrets, and URLs with credentials, come from the environment alone: `ENCORE_X`, or the file that `ENCORE_X_FILE` names,
because others can read arguments (`ps`, Ray's dashboard, logs). Sizes are in bytes, times in seconds.

This page is written by `python docs/settings.py`.

| setting | default | what it does | one of | environment |
|---|---|---|---|---|
"""


def choices(schema: dict[str, Any]) -> str:
    """Return the values that a setting can have, where they are few: its JSON schema's `enum`."""
    found = [value for part in (schema, *schema.get("anyOf", ())) for value in part.get("enum", ())]
    return ", ".join(f"`{value}`" for value in found)


def environment(name: str) -> str:
    """Return the variables that a setting is read from."""
    return f"`{variable(name)}`" + (f", `{variable(name)}_FILE`" if name in SECRETS | SECRET_URLS else "")


def page() -> str:
    """Return the whole page."""
    schemas = Settings.model_json_schema()["properties"]
    rows = []
    for name, field in Settings.model_fields.items():
        default = "environment only" if name in SECRETS else f"`{field.default}`"
        cells = (f"`{name}`", default, field.description or "", choices(schemas[name]), environment(name))
        rows.append(f"| {' | '.join(cells)} |\n".replace("|  |", "| |"))
    named = yaml.safe_load(LOCAL.read_text())["applications"][0]["args"]
    return HEAD.format(local=", ".join(f"`{name}`" for name in named)) + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page())

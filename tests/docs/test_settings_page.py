"""docs/settings.md is what docs/settings.py writes, and names every setting."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from serve_app.settings import SECRET_URLS, SECRETS, Settings

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def page() -> str:
    """The page as it lies in the repository."""
    return (DOCS / "settings.md").read_text()


def test_the_page_is_the_written_one(page: str) -> None:
    """The page is up to date with the code."""
    assert runpy.run_path(str(DOCS / "settings.py"))["page"]() == page, "run: python docs/settings.py"


def test_every_setting_is_listed(page: str) -> None:
    """The table has one row for each setting, with its default and its description."""
    for name, field in Settings.model_fields.items():
        default = "environment only" if name in SECRETS else f"`{field.default}`"
        assert page.count(f"| `{name}` | {default} | {field.description} |") == 1


def test_the_variables_of_a_setting_are_listed(page: str) -> None:
    """Each row ends with the variables that set it; a secret and a URL may come from a file too."""
    for line in page.splitlines():
        if line.startswith("| `"):
            name = line.split("`")[1]
            file = f", `ENCORE_{name.upper()}_FILE`" if name in SECRETS | SECRET_URLS else ""
            assert line.endswith(f"| `ENCORE_{name.upper()}`{file} |")
    assert "`ENCORE_SECRET_FILE`" in page


def test_few_values_are_listed(page: str) -> None:
    """A setting with few values names them."""
    assert "| `int8`, `fp8` | `ENCORE_QUANTIZATION` |" in page
    assert "| `auto`, `on`, `off` | `ENCORE_L3_FILTER` |" in page

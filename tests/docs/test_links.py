"""What the documents point at exists: linked files and headings, named files, commands and options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from serve_app.cli.cli import app

ROOT = Path(__file__).parents[2]
NEAR = (".", "serve_app", "deployments", "deployments/launcher")
"""Where a document's reader looks for a file that is named without its folder."""
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "deployments/**/*.md", "serve_app/**/*.md")
    for path in ROOT.glob(pattern)
)
each_page = pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])


def prose(page: str) -> str:
    """Return a page without its fenced code."""
    return re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings; equal headings are numbered."""
    found: list[str] = []
    for title in re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\]\([^)]*\)", "", title.lower())
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return set(found)


def links(page: str) -> list[str]:
    """Return what a page links to, pictures too."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def code_lines(page: str) -> list[str]:
    """Return the lines of fenced and indented code, and code in the middle of a line."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4}(\S.*)$", prose(page), re.MULTILINE)
    return [*"".join(blocks).splitlines(), *indented, *re.findall(r"`([^`\n]+)`", prose(page))]


def test_anchors_are_those_of_github() -> None:
    """Marks go, blanks become hyphens, code in a heading counts as text, comments in code are no headings."""
    page = "# The `API`, v1\n```sh\n# no heading\n```\n## Use it\n## Use it\n## [Ray](https://ray.io) & you\n"
    assert anchors(page) == {"the-api-v1", "use-it", "use-it-1", "ray--you"}


def test_the_pages_are_found() -> None:
    """README, the map, and all pages that it lists are among those that are checked."""
    names = {str(path.relative_to(ROOT)) for path in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md", "benchmarks/README.md"} <= names
    listed = {link.partition("#")[0] for link in links((ROOT / "README.md").read_text())}
    assert {name for name in names if name.startswith("docs/")} <= listed


@each_page
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link names a file of this repository, and its anchor a heading there."""
    for link in links(path.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@each_page
def test_named_files_exist(path: Path) -> None:
    """Every program, script, test and folder that a page names in code exists."""
    for line in code_lines(path.read_text()):
        for name in re.findall(
            r"(?<![\w./~-])(?:[\w-]+/)*[\w-]+(?:\.py|\.lua)\b|(?<![\w./~-])(?:[\w-]+/)+(?=$|\s)", line
        ):
            if name in ("benchmarks/X.py", "runs/", "quarantine/") or name.startswith("storm_"):
                continue
            near = (path.parent, *(ROOT / place for place in NEAR), *(ROOT / "serve_app").glob("*/"))
            assert any((folder / name).exists() for folder in near), (line, name)


@each_page
def test_encore_commands_exist(path: Path) -> None:
    """Every `encore` command in code is one of the program's, with options that it has."""
    commands: dict[str, Any] = typer.main.get_command(app).commands
    for line in code_lines(path.read_text()):
        words = shlex.split(line, comments=True) if line.startswith("encore ") else []
        if len(words) < 2 or words[1].startswith("-"):
            continue
        assert words[1] in commands, line
        options = {name for each in commands[words[1]].params for name in (*each.opts, *each.secondary_opts)}
        assert {word for word in words[2:] if re.match("--?[a-z]", word)} <= options | {"--help"}, line


def test_the_readme_is_one_sitting() -> None:
    """The README has at most 200 lines, the map of the code at most 80."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 80

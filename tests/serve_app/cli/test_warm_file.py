"""Files of templates: the two forms, and errors with the line they are in."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.cli.warm_file import read_templates
from serve_app.errors import InvalidRequest, Unprocessable

FILE = """\
# before the launch
ttl: 12h
templates:
  - prompt: "{greeting} for {shop}"
    variables:
      greeting: [a red heart grows, "a star: it spins"]
      shop:
        - Anna
        - 24/7
        - 365
    size: 64x64
  - prompt: a plain one
    ttl: 3d
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "t.yaml"
    path.write_text(text, "utf-8")
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    """Templates come out with their values as text, the file's ttl where they have none."""
    read = read_templates(written(tmp_path, FILE))
    items = list(read.templates.items())
    assert [item.request.prompt for item in items][-3:] == [
        "a star: it spins for 24/7", "a star: it spins for 365", "a plain one"
    ]  # fmt: skip
    assert [(item.template, item.ttl) for item in items] == [(0, 43_200)] * 6 + [(1, 259_200)]


def test_a_list_alone_is_a_file_too(tmp_path: Path) -> None:
    """The object around the list may be left out; anchors and merges are YAML's own."""
    text = "- &small {prompt: one, size: 32x32, seed: 7}\n- <<: *small\n  prompt: two\n"
    items = list(read_templates(written(tmp_path, text)).templates.items())
    assert [(item.request.prompt, item.request.seed) for item in items] == [("one", 7), ("two", 7)]


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("templates:\n  - prompt: 'a\n", 3, "end of stream"),
        ("templates:\n\t- x\n", 2, "cannot start any token"),
        ("- prompt: a\n  prompt: b\n", 2, "'prompt' is named twice"),
        ("templates: []\nttl: 3d\n", 1, "at least one"),
        ("ttl: soon\ntemplates: [{prompt: a}]\n", 1, "'ttl' must be"),
        ("templates:\n  - prompt: a\n\n  - prompt: b\n    sede: 7\n", 5, "Unknown field 'sede'"),
        ("- prompt: a\n- prompt: '{x}'\n  variables:\n    x:\n      - fine\n      - no\n", 6, "quote it"),
        ("- prompt: a\n- promt: b\n", 2, "Unknown field 'promt'"),
        ("- prompt: a\n- size: 32x32\n", 2, "'prompt' is required"),
        ("template:\n  - prompt: a\n", 1, "'template' is not known here"),
        ("just text\n", 1, "must be a list"),
        ("- prompt: 2024-01-01\n", 1, "'prompt' is not valid"),
        ("- !!python/object:os.system {}\n", 1, "could not determine a constructor"),
    ],
)
def test_what_is_wrong_names_its_line(tmp_path: Path, text: str, line: int, told: str) -> None:
    """Of a file that cannot be used the first thing wrong is told, with its line and in words."""
    with pytest.raises(InvalidRequest) as raised:
        read_templates(written(tmp_path, text))
    assert f"t.yaml, line {line}: " in raised.value.message
    assert told in raised.value.message


def test_a_file_that_is_none(tmp_path: Path) -> None:
    """A missing file, an empty one and one that is not UTF-8 are told as such."""
    with pytest.raises(InvalidRequest, match="No such file"):
        read_templates(tmp_path / "none.yaml")
    with pytest.raises(InvalidRequest, match="is empty"):
        read_templates(written(tmp_path, "# nothing\n"))
    (tmp_path / "t.yaml").write_bytes(b"- prompt: \xff\n")
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        read_templates(tmp_path / "t.yaml")


def test_an_error_of_the_server_finds_its_line(tmp_path: Path) -> None:
    """A refusal that names a template's field is located like the file's own errors, its class kept."""
    read = read_templates(written(tmp_path, FILE))
    error = read.located(Unprocessable("templates[0]: 'size' is off the grid.", param="templates[0].size"))
    assert isinstance(error, Unprocessable)
    assert "t.yaml, line 11: templates[0]: 'size'" in error.message

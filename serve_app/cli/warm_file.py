"""A file of templates: YAML, a list of them or an object with `templates` and maybe `ttl`, and where in it things are.

What is wrong is told with the line it is in. Keys that are named twice are refused, which YAML's parser would not do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.errors import InvalidRequest, Unprocessable
from serve_app.schema.templates import MAX_COMBINATIONS, Templates, parse_templates

_STEP = re.compile(r"\[(\d+)\]|([^.\[]+)")
_NAMES = ("templates", "ttl")


@dataclass(frozen=True, slots=True)
class TemplateFile:
    """What a file says, and its nodes, which know their lines."""

    path: Path
    templates: Templates
    _root: yaml.Node

    def located(self, error: InvalidRequest) -> InvalidRequest:
        """Return `error` with the line that its `param` is about."""
        return _located(self.path, self._root, error)


def read_templates(path: Path) -> TemplateFile:
    """Read a file; raises InvalidRequest, which names the line, for one that cannot be read or has no templates."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidRequest(f"Cannot read {path}: {why}.") from error
    root, content = _parsed(path, text)
    try:
        if isinstance(content, dict):
            _check_names(content)
            templates = parse_templates(content.get("templates"), content.get("ttl"), max_items=MAX_COMBINATIONS)
        else:
            templates = parse_templates(content, max_items=MAX_COMBINATIONS)
    except Unprocessable as error:
        raise _located(path, root, error) from None
    return TemplateFile(path, templates, root)


def _parsed(path: Path, text: str) -> tuple[yaml.Node, Any]:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise InvalidRequest(f"{path} is empty.")
        _check_twice(path, root, set())
        return root, loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise InvalidRequest(f"{path}{place}: {getattr(error, 'problem', None) or error}.") from error
    except (ValueError, RecursionError) as error:  # such as the date 2024-99-99
        raise InvalidRequest(f"{path}: {error}.") from error
    finally:
        loader.dispose()


def _check_twice(path: Path, node: yaml.Node, seen: set[int]) -> None:
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _check_twice(path, each, seen)
    elif isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in names and name != "<<":
                raise InvalidRequest(f"{path}, line {key.start_mark.line + 1}: '{name}' is named twice.")
            names.add(name)
            _check_twice(path, value, seen)


def _check_names(content: dict[Any, Any]) -> None:
    for name in content:
        if name not in _NAMES:
            raise Unprocessable(
                f"'{name}' is not known here; a file has {' and '.join(_NAMES)}, or is a list of templates.",
                param=str(name),
            )


def _located(path: Path, root: yaml.Node, error: InvalidRequest) -> InvalidRequest:
    steps = [int(number) if number else name for number, name in _STEP.findall(error.param or "")]
    if isinstance(root, yaml.SequenceNode) and steps[:1] == ["templates"]:
        steps = steps[1:]
    line = _line(root, steps)
    return type(error)(f"{path}, line {line}: {error.message}", param=error.param)


def _line(node: yaml.Node, steps: list[int | str]) -> int:
    """Return the line of what `steps` lead to, or of the last of them that is in the file."""
    line = int(node.start_mark.line) + 1
    for step in steps:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = int(node.start_mark.line) + 1
        elif isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(step)]
            if not found:
                break
            line = int(found[0][0].start_mark.line) + 1
            node = found[0][1]
        else:
            break
    return line

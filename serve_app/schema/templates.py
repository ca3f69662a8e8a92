"""Templates of requests, `"{greeting} for {shop}"`, and the requests they stand for; the form of warm-ups.

A variable is a list of values; a template stands for every combination of them, in the order of the lists, the last
variable turning fastest. Combinations are made one at a time, so a file may mean a million of them; how many they are,
and how long their texts get, is known before the first is made, and bounded then. Beside `variables`
and `ttl` a template has the fields of any request; a brace that is none of a variable's is written twice, as in Python.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from serve_app.core import Priority
from serve_app.errors import EncoreError, UnknownField, Unprocessable
from serve_app.schema.request import VideoRequest, has_only_characters, parse_request

DAY = 86_400.0
DEFAULT_TTL = 3 * DAY
MAX_TTL = 366 * DAY
TEXTS = ("prompt", "negative_prompt")
"""The fields that may have variables in them."""
MAX_COMBINATIONS = 1_000_000
"""Of one file. A server takes them in parts of 10,000."""
_UNCOUNTED = 10**15
MAX_TEXT_CHARS = 100_000
"""Of a text with its variables filled in; a server has a lower limit, its setting `max_prompt_chars`."""
OWN = ("variables", "ttl")
REFUSED = {
    "priority": "a warm-up always has the priority warm_up",
    "deadline_seconds": "a warm-up has no deadline",
    "input_reference": "a warm-up starts from text alone",
}
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY, "w": 7 * DAY}
_TTL = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([smhdw]?)", re.ASCII)
_PARTS = re.compile(r"(\{\{|\}\}|\{[^{}]*\}|[{}])")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Text:
    """A text with variables in it: literal parts and names, in turns, a literal first and last."""

    parts: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The variables, as often as they occur."""
        return self.parts[1::2]

    def filled(self, values: Mapping[str, str]) -> str:
        """Return the text with each variable's value in its place."""
        return "".join(values[part] if number % 2 else part for number, part in enumerate(self.parts))


@dataclass(frozen=True, slots=True)
class Template:
    """One template. `request` has its fixed fields; ttl: seconds that L2 keeps a value which is not asked for."""

    request: VideoRequest
    texts: Mapping[str, Text]
    variables: Mapping[str, tuple[str, ...]]
    ttl: float

    @property
    def combinations(self) -> int:
        """How many requests it stands for, equal ones counted each."""
        return math.prod(map(len, self.variables.values()))

    def requests(self) -> Iterator[VideoRequest]:
        """Yield the requests, each made when it is asked for."""
        for values in itertools.product(*self.variables.values()):
            given = dict(zip(self.variables, values, strict=True))
            yield self.request.model_copy(update={name: text.filled(given) for name, text in self.texts.items()})


@dataclass(frozen=True, slots=True)
class Item:
    """One request to warm, and the number of the template it comes from."""

    template: int
    request: VideoRequest
    ttl: float


@dataclass(frozen=True, slots=True)
class Templates:
    """What one warm-up is about."""

    templates: tuple[Template, ...]

    @property
    def combinations(self) -> int:
        """How many requests all templates stand for, equal ones counted each."""
        return sum(template.combinations for template in self.templates)

    def items(self) -> Iterator[Item]:
        """Yield what all templates stand for, in their order."""
        for number, template in enumerate(self.templates):
            for request in template.requests():
                yield Item(number, request, template.ttl)


def parse_templates(
    templates: object, ttl: object = None, *, max_items: int | None = None, max_chars: int = MAX_TEXT_CHARS
) -> Templates:
    """Return templates as `[{"prompt": ..., "variables": {name: [value, ...]}, "ttl": ..., field: ...}]` says them.

    ttl: of those that name none; absent: 3 days. Raises Unprocessable, whose `param` is a path such as
    `templates[2].variables.shop`.
    """
    usual = DEFAULT_TTL if ttl is None else parse_ttl(ttl, "ttl")
    if not isinstance(templates, Sequence) or isinstance(templates, str) or not templates:
        raise Unprocessable("'templates' must be a list of at least one template.", param="templates")
    if max_items is not None:
        _check_count(templates, max_items)
    return Templates(
        tuple(_template(each, f"templates[{number}]", usual, max_chars) for number, each in enumerate(templates))
    )


def _check_count(templates: Sequence[object], most: int) -> None:
    """Raise Unprocessable for more combinations than `most`, before anything is made of them."""
    combinations = 0
    for template in templates:
        combinations += _combinations(template)
        if combinations > _UNCOUNTED:
            break
    if combinations > most:
        how_many = f"{combinations:,}" if combinations <= _UNCOUNTED else f"more than {_UNCOUNTED:,}"
        in_parts = "in one call (`encore warm` sends more in parts)" if most < MAX_COMBINATIONS else "with one file"
        raise Unprocessable(
            f"The templates stand for {how_many} requests; at most {most:,} may be warmed {in_parts}.",
            param="templates",
        )


def _combinations(template: object) -> int:
    """Return how many requests a template stands for, if it is one, and not much more than may ever be asked for."""
    variables = template.get("variables") if isinstance(template, Mapping) else None
    combinations = 1
    for values in variables.values() if isinstance(variables, Mapping) else ():
        combinations *= len(values) if isinstance(values, Sequence) and not isinstance(values, str) else 1
        if combinations > _UNCOUNTED:
            break
    return combinations


def parse_ttl(value: object, where: str) -> float:
    """Return seconds: a number of them, or a number with `s`, `m`, `h`, `d` or `w`. Raises Unprocessable."""
    seconds = 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = min(value, MAX_TTL + 1)  # a whole number may be too large for a float
    elif isinstance(value, str) and len(value) <= 40 and (found := _TTL.fullmatch(value.strip())):
        seconds = float(found[1]) * _UNITS[found[2] or "s"]
    if not 1 <= seconds <= MAX_TTL:
        raise Unprocessable(
            f"'{where}' must be a number of seconds, or one like 90s, 12h or 3d; at least 1 s, at most 366 days.",
            param=where,
        )
    return seconds


TTL_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": 1, "maximum": MAX_TTL},
        {"type": "string", "maxLength": 40, "pattern": r"^\s*[0-9]{1,12}(\.[0-9]{1,6})?\s*[smhdw]?\s*$"},
        {"type": "null"},
    ]
}
"""What `parse_ttl` takes, and null for absent."""
VARIABLES_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"},
            "additionalProperties": {"type": "array", "minItems": 1, "items": {"type": ["string", "number"]}},
        },
        {"type": "null"},
    ]
}


def located(error: EncoreError, where: str) -> Unprocessable:
    """Return a refusal of a template's field, or of the request made of it, that says where the template is."""
    kind = type(error) if isinstance(error, Unprocessable) else Unprocessable
    return kind(f"{where}: {error.message}", param=f"{where}.{error.param}" if error.param else where)


def _template(fields: object, where: str, ttl: float, max_chars: int) -> Template:
    if not isinstance(fields, Mapping):
        raise Unprocessable(f"'{where}' must be an object with at least a prompt.", param=where)
    _check_names(fields, where)
    fixed = {name: value for name, value in fields.items() if name not in OWN}
    try:
        request = parse_request(fixed | {"priority": Priority.WARM_UP.value})
    except Unprocessable as error:
        raise located(error, where) from None
    if request.seed == "random":
        _refuse("a random seed would warm what nobody asks for", f"{where}.seed")
    variables = _variables(fields.get("variables"), f"{where}.variables")
    texts = {
        name: _text(text, f"{where}.{name}", variables, max_chars)
        for name in TEXTS
        if (text := getattr(request, name)) is not None
    }
    if unused := variables.keys() - {name for text in texts.values() for name in text.names}:
        name = min(unused)
        _refuse("is in no text of this template", f"{where}.variables.{name}")
    own = fields.get("ttl")
    return Template(request, texts, variables, ttl if own is None else parse_ttl(own, f"{where}.ttl"))


def _check_names(fields: Mapping[Any, object], where: str) -> None:
    for name in fields:
        if name in REFUSED:
            _refuse(REFUSED[name], f"{where}.{name}")
        if name not in OWN and name not in VideoRequest.model_fields:
            shown = str(name)[:100].encode("utf-8", "replace").decode()
            known = ", ".join([*OWN, *(each for each in VideoRequest.model_fields if each not in REFUSED)])
            raise UnknownField(f"{where}: Unknown field '{shown}'. Known fields: {known}.", param=f"{where}.{shown}")


def _variables(variables: object, where: str) -> dict[str, tuple[str, ...]]:
    if variables is None:
        return {}
    if not isinstance(variables, Mapping):
        _refuse("must be an object of lists, one for each variable", where)
    return {_name(name, where): _values(values, f"{where}.{name}") for name, values in variables.items()}


def _name(name: object, where: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        _refuse("a variable's name is letters, digits and underscores", where)
    return name


def _values(values: object, where: str) -> tuple[str, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        _refuse("must be a list of at least one value", where)
    return tuple(_value(value, f"{where}[{number}]") for number, value in enumerate(values))


def _value(value: object, where: str) -> str:
    """Return a value as text; YAML reads an unquoted `no` as false and a date as a date, so those are refused."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        _refuse(f"must be text or a number, not {type(value).__name__}; quote it if it is text", where)
    if isinstance(value, float) and not math.isfinite(value):
        _refuse("must be a finite number", where)
    text = str(value)
    if not has_only_characters(text):
        _refuse("must be valid Unicode, without lone surrogates", where)
    return text


def _text(text: str, where: str, variables: Mapping[str, Sequence[str]], max_chars: int) -> Text:
    if len(text) > 4 * max_chars + 10_000:  # braces are written twice, names are longer than what they stand for
        _refuse(f"has {len(text):,} characters; a filled-in text may have {max_chars:,}", where)
    made = _split(text, where, variables)
    longest = {name: max(map(len, variables[name])) for name in set(made.names)}
    length = sum(map(len, made.parts[::2])) + sum(longest[name] for name in made.names)
    if length > max_chars:
        _refuse(
            f"has up to {length:,} characters with its variables filled in; at most {max_chars:,} are allowed", where
        )
    return made


def _split(text: str, where: str, variables: Mapping[str, object]) -> Text:
    parts, literal = [], ""
    for piece in _PARTS.split(text):
        if piece in ("{{", "}}"):
            literal += piece[0]
        elif piece[:1] == "{" and piece[-1:] == "}":
            if piece[1:-1] not in variables:
                _refuse(f"names '{piece[:100]}', which is not among its variables (a brace is written twice)", where)
            parts += [literal, piece[1:-1]]
            literal = ""
        elif piece in ("{", "}"):
            _refuse(f"has a single '{piece}' (a brace is written twice)", where)
        else:
            literal += piece
    return Text((*parts, literal))


def _refuse(why: str, where: str) -> NoReturn:
    shown = where[:200].encode("utf-8", "replace").decode()
    raise Unprocessable(f"'{shown}' {why}.", param=shown)

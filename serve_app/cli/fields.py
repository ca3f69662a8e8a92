"""The fields of a request as options, declared once for every command that takes them.

Only what must be a number is checked here; ranges, defaults and contradictions are the model's, so the server (or the
planner) says what is wrong with them, in the same words for every door.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Fields = dict[str, Any]
"""The fields that were given, by their names on the wire."""


def _seed(text: str) -> int | str:
    if text == "random":
        return text
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is neither a whole number nor `random`.") from None


def _image(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"'{path}' cannot be read: {error.strerror}.") from None


def _option(*names: str, text: str, panel: str = "The video (absent: the model's default)", **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


_NAMES = "Its names (change no video)"
_URGENCY = "How soon (changes no video)"


def _declared(
    negative_prompt: Annotated[str | None, _option(text="What the video should not show.")] = None,
    model: Annotated[str | None, _option(text="A model the server has.")] = None,
    seed: Annotated[Any, _option(parser=_seed, metavar="INT|random", text="Absent: 42.")] = None,
    size: Annotated[str | None, _option(metavar="WxH", text="Width and height in pixels.")] = None,
    width: Annotated[int | None, _option(text="Pixels; with --height, instead of --size.")] = None,
    height: Annotated[int | None, _option(text="Pixels; with --width, instead of --size.")] = None,
    input_reference: Annotated[
        Any,
        _option(
            "--image",
            parser=_image,
            metavar="FILE",
            text="A PNG, JPEG or WebP that it starts from; cut in the middle to its shape.",
        ),
    ] = None,
    num_frames: Annotated[int | None, _option(text="Frames; or give --seconds.")] = None,
    seconds: Annotated[float | None, _option(text="Playing time.")] = None,
    fps: Annotated[int | None, _option(text="Frames per second.")] = None,
    num_inference_steps: Annotated[
        int | None, _option("--num-inference-steps", "--steps", text="Denoising steps.")
    ] = None,
    guidance_scale: Annotated[float | None, _option(text="How closely to follow the prompt.")] = None,
    quality: Annotated[int | None, _option(text="0 (lossless) to 51 (smallest file). Absent: 23.")] = None,
    correct_typos: Annotated[
        bool | None, _option("--correct-typos/--no-correct-typos", text="Whether mistyped words are corrected.")
    ] = None,
    priority: Annotated[
        str | None,
        _option(metavar="interactive|batch|warm_up", panel=_URGENCY, text="Who waits for it. Absent: interactive."),
    ] = None,
    deadline_seconds: Annotated[
        float | None, _option(panel=_URGENCY, text="Wanted within so many seconds; nothing is dropped after them.")
    ] = None,
    tags: Annotated[
        str | None,
        _option(
            "--tags", "--tag", metavar="TAG,TAG", panel=_NAMES, text="Up to 8; `encore invalidate --tag` takes one."
        ),
    ] = None,
) -> None:
    """Hold the options; never called."""


OPTIONS = inspect.signature(_declared, eval_str=True).parameters


def takes_fields(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` every request field as an option; it gets those that were given as its argument `fields`."""

    @functools.wraps(command)
    def called(**given: Any) -> None:
        options = {name: given.pop(name) for name in OPTIONS}
        command(fields={name: value for name, value in options.items() if value is not None}, **given)

    own = inspect.signature(command, eval_str=True).parameters.values()
    both = [*(each for each in own if each.name != "fields"), *OPTIONS.values()]
    keyword = inspect.Parameter.KEYWORD_ONLY
    called.__signature__ = inspect.Signature([each.replace(kind=keyword) for each in both])  # type: ignore[attr-defined]
    return called

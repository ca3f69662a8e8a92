"""From the generous wire to one VideoSpec on the model's own grid.

Whatever two forms say the same thing resolve to equal specs. Nothing is rounded silently: a value off the grid is
refused with the nearest allowed ones, and two fields that disagree are refused by name. Prompts pass through as they
are here; the service normalises them.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from serve_app.core import IntRange, ModelCard, VideoSpec
from serve_app.errors import Contradiction, ImageNotSupported, NotFound, Unprocessable
from serve_app.schema.request import QUALITY, VideoRequest

_SIZE = re.compile(r"(\d{1,6})[x\u00d7X*](\d{1,6})", re.ASCII)

_SHOWN = 10**12


def resolve(request: VideoRequest, card: ModelCard) -> VideoSpec:
    """Return the spec that `request` means on the model of `card`.

    Raises NotFound for another model, ImageNotSupported for an image that it cannot start from, Contradiction for
    fields that disagree, Unprocessable off the grid. Which image it is, is not in the spec yet.
    """
    if request.model is not None and request.model not in (card.name, *card.aliases):
        raise no_such_model(request.model, card)
    if request.input_reference is not None and not card.takes_image:
        raise ImageNotSupported(f"{card.name} makes videos from text alone.", param="input_reference")
    width, height = _size(request, card)
    num_frames, fps = _length(request, card)
    return VideoSpec(
        model=card.name,
        prompt=request.prompt,
        negative_prompt=card.default_negative_prompt if request.negative_prompt is None else request.negative_prompt,
        seed=request.drawn_seed(),
        width=width,
        height=height,
        num_frames=num_frames,
        fps=fps,
        num_inference_steps=_on_grid("num_inference_steps", request.num_inference_steps, card.num_inference_steps),
        guidance_scale=_guidance_scale(request, card),
        quality=_on_grid("quality", request.quality, QUALITY),
    )


def no_such_model(model: str, card: ModelCard) -> NotFound:
    """Return the error for a model that is not the one of `card`."""
    return NotFound(f"There is no model '{model[:100]}' here; this server has {card.name}.", param="model")


def _guidance_scale(request: VideoRequest, card: ModelCard) -> float:
    allowed = card.guidance_scale
    if request.guidance_scale is None:
        return allowed.default
    if request.guidance_scale not in allowed:
        raise Unprocessable(
            f"'guidance_scale' must be from {allowed.minimum:g} to {allowed.maximum:g} for {card.name}.",
            param="guidance_scale",
        )
    return request.guidance_scale + 0.0


def _on_grid(name: str, value: int | None, allowed: IntRange) -> int:
    if value is None:
        return allowed.default
    if value not in allowed:
        raise Unprocessable(f"'{name}' {_shown(value)} is not allowed: it {_describe(allowed, value)}.", param=name)
    return value


def _describe(allowed: IntRange, value: int) -> str:
    steps = f" in steps of {allowed.step}" if allowed.step > 1 else ""
    nearest = " and ".join(map(str, allowed.nearest(value)))
    return f"goes from {allowed.minimum} to {allowed.maximum}{steps}, nearest {nearest}"


def _shown(value: int) -> str:
    return str(value) if abs(value) < _SHOWN else "of that magnitude"


def _size(request: VideoRequest, card: ModelCard) -> tuple[int, int]:
    width, height = request.width, request.height
    if (width is None) != (height is None):
        missing = "height" if height is None else "width"
        raise Unprocessable(f"'width' and 'height' go together; '{missing}' is missing.", param=missing)
    if request.size is not None:
        parsed = _SIZE.fullmatch(request.size.strip())
        if parsed is None:
            raise Unprocessable("'size' must be WIDTHxHEIGHT, for example 64x64.", param="size")
        from_size = (int(parsed[1]), int(parsed[2]))
        if width is not None and (width, height) != from_size:
            raise Contradiction(f"'size' says {request.size} and 'width' x 'height' say otherwise.", param="size")
        width, height = from_size
    if width is not None and height is not None and card.sizes is not None:
        return _offered(width, height, card.sizes, card.name)
    if request.size is not None and width is not None and height is not None:
        _sizes_on_grid(width, height, card)
    return _on_grid("width", width, card.width), _on_grid("height", height, card.height)


def _offered(width: int, height: int, sizes: tuple[tuple[int, int], ...], model: str) -> tuple[int, int]:
    if (width, height) not in sizes:
        *others, last = (f"{each[0]}x{each[1]}" for each in sizes)
        names = f"{', '.join(others)} and {last}" if others else last
        shown = f"{width}x{height}" if max(abs(width), abs(height)) < _SHOWN else "of that magnitude"
        raise Unprocessable(f"'size' {shown} is not offered by {model}; its sizes are {names}.", param="size")
    return width, height


def _sizes_on_grid(width: int, height: int, card: ModelCard) -> None:
    for side, value, allowed in (("width", width, card.width), ("height", height, card.height)):
        if value not in allowed:
            raise Unprocessable(
                f"'size' {width}x{height} is not allowed: its {side} {_describe(allowed, value)}.", param="size"
            )


def _length(request: VideoRequest, card: ModelCard) -> tuple[int, int]:
    """Return (num_frames, fps); `seconds` is exact arithmetic, so 0.1 + 0.2 never decides."""
    fps = None if request.fps is None else _on_grid("fps", request.fps, card.fps)
    if request.seconds is None:
        return (
            _on_grid("num_frames", request.num_frames, card.num_frames),
            card.fps.default if fps is None else fps,
        )
    seconds = _seconds(request.seconds, card)
    if request.num_frames is not None:
        num_frames = _on_grid("num_frames", request.num_frames, card.num_frames)
        return num_frames, _agreed_fps(num_frames, seconds, fps, card)
    if fps is None:
        fps = _fitting_fps(seconds, card)
    frames = _frames(seconds, fps, card)
    if frames is None:
        raise Unprocessable(_unfitting(seconds, fps, card), param="seconds")
    return frames, fps


def _frames(seconds: Fraction, fps: int, card: ModelCard) -> int | None:
    """Return the allowed number of frames that lasts `seconds`, None when there is none.

    A model of 4n + 1 frames counts its first one at time zero: 5 seconds at 16 are 81 frames there, as Wan has it.
    """
    frames = seconds * fps
    if frames.denominator != 1:
        return None
    from_zero = card.num_frames.step > 1 and card.num_frames.minimum % card.num_frames.step == 1
    counts = (int(frames), int(frames) + 1) if from_zero else (int(frames),)
    return next((count for count in counts if count in card.num_frames), None)


def _seconds(seconds: float, card: ModelCard) -> Fraction:
    """Return what the decimal number means: six digits, as answers print them, are enough to say 24/17."""
    if not 0 < seconds <= 3600:
        raise Unprocessable("'seconds' must be more than 0 and at most 3600.", param="seconds")
    fraction = Fraction(seconds).limit_denominator(card.fps.maximum)
    if not math.isclose(fraction, seconds, rel_tol=5e-6):
        fraction = Fraction(seconds).limit_denominator(10_000)
    if not fraction:
        raise Unprocessable("'seconds' must be at least 0.0001.", param="seconds")
    return fraction


def _agreed_fps(num_frames: int, seconds: Fraction, fps: int | None, card: ModelCard) -> int:
    implied = num_frames / seconds
    if fps is not None and _frames(seconds, fps, card) == num_frames:
        return fps
    if fps is not None and implied != fps:
        raise Contradiction(
            f"'num_frames' {num_frames} at 'fps' {fps} last {num_frames / fps:g} s; 'seconds' says {float(seconds):g}.",
            param="seconds",
        )
    if implied.denominator != 1 or int(implied) not in card.fps:
        raise Contradiction(
            f"'num_frames' {num_frames} in {float(seconds):g} 'seconds' need {float(implied):g} frames per second, "
            f"which {card.name} cannot do.",
            param="seconds",
        )
    return int(implied)


def _fitting_fps(seconds: Fraction, card: ModelCard) -> int:
    """Pick the frame rate nearest the default at which `seconds` is an allowed number of frames; ties go up."""
    rates = range(card.fps.minimum, card.fps.maximum + 1, card.fps.step)
    fitting = [fps for fps in rates if _frames(seconds, fps, card) is not None]
    if not fitting:
        shortest = card.num_frames.minimum / card.fps.maximum
        longest = card.num_frames.maximum / card.fps.minimum
        raise Unprocessable(
            f"'seconds' {float(seconds):g} fits no frame rate of {card.name}: {card.num_frames.minimum} to "
            f"{card.num_frames.maximum} frames at {card.fps.minimum} to {card.fps.maximum} per second "
            f"({shortest:.3g} to {longest:g} seconds).",
            param="seconds",
        )
    return min(fitting, key=lambda fps: (abs(fps - card.fps.default), -fps))


def _unfitting(seconds: Fraction, fps: int, card: ModelCard) -> str:
    nearest = " and ".join(f"{n / fps:g}" for n in card.num_frames.nearest(round(seconds * fps)))
    return (
        f"'seconds' {float(seconds):g} at 'fps' {fps} are {float(seconds * fps):g} frames; {card.name} makes "
        f"{card.num_frames.minimum} to {card.num_frames.maximum}, so nearest is {nearest} seconds."
    )

"""What a render costs on this deployment's devices, learnt from the videos it makes: their metadata says it.

Cost is taken to be proportional to steps x rows x frames x pixels, as the denoiser's is. The seconds are those between
a render's first step and its finished file, so jobs that share passes count in full: an estimate errs upwards.
"""

from __future__ import annotations

from serve_app.core import Entry, VideoSpec, described_spec
from serve_app.running_mean import RunningMean

_NEWEST = 0.2
"""The share of the latest render in the mean."""


class Cost:
    """Seconds per unit of work, the mean over the latest renders; None until there was one."""

    def __init__(self) -> None:
        self._seconds_per_work = RunningMean(_NEWEST)

    def learn(self, entry: Entry) -> None:
        """Take what a video took; metadata of another release that does not say it is passed over."""
        spec = _spec(entry.meta.get("spec"))
        seconds = entry.meta.get("render_seconds")
        if spec is None or not isinstance(seconds, int | float):
            return
        self._seconds_per_work.add((seconds + float(entry.meta.get("encode_seconds", 0.0))) / work_of(spec))

    @property
    def is_known(self) -> bool:
        """Whether there was a render to learn from."""
        return self._seconds_per_work.value is not None

    def seconds(self, spec: VideoSpec) -> float | None:
        """Return what a render of `spec` takes; None while nothing was measured."""
        known = self._seconds_per_work.value
        return None if known is None else known * work_of(spec)


def work_of(spec: VideoSpec) -> float:
    """Return how much there is to denoise, in steps times rows of a pass times frames times pixels."""
    rows = 2 if spec.guided else 1
    return float(spec.num_inference_steps * rows * spec.num_frames * spec.width * spec.height)


def _spec(told: object) -> VideoSpec | None:
    try:
        return described_spec(told)
    except ValueError:
        return None

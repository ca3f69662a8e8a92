"""A Wan checkpoint's folder in diffusers' layout: what it says of itself, whether it is whole, and its digests.

Everything here is read from JSON and from the headers of safetensors files, without torch, because routers read cards
and a server should refuse a folder before it starts anything. NotFound says what is wrong with which file; whether the
weights fit the classes in every name and shape is checked when they are loaded.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.errors import NotFound
from serve_app.model.wan.checkpoint.digests import Digests

INDEX_FILE = "model_index.json"
_CLASSES: Mapping[str, tuple[str, ...]] = {
    "transformer": ("WanTransformer3DModel",),
    "vae": ("AutoencoderKLWan",),
    "text_encoder": ("UMT5EncoderModel",),
    "scheduler": ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
}
_STEMS = {"text_encoder": "model"}
_SAMPLING: Mapping[str, Mapping[str, Any]] = {
    "UniPCMultistepScheduler": {
        "prediction_type": "flow_prediction", "use_flow_sigmas": True, "predict_x0": True, "solver_type": "bh2",
        "lower_order_final": True, "final_sigmas_type": "zero", "thresholding": False, "solver_p": None,
        "use_dynamic_shifting": False,
    },
    "FlowMatchEulerDiscreteScheduler": {
        "stochastic_sampling": False, "invert_sigmas": False, "use_dynamic_shifting": False,
    },
}  # fmt: skip
_SAMPLING_DEFAULTS = {"prediction_type": "epsilon", "use_flow_sigmas": False}  # others default to what is asked for


@dataclass(frozen=True, eq=False)
class WanCheckpoint:
    """A folder that is a Wan text-to-video pipeline; `read` makes it, and checks."""

    folder: Path
    index: Mapping[str, Any]

    @property
    def transformers(self) -> tuple[str, ...]:
        """The names of its transformers: the second one is for lower noise levels."""
        return ("transformer", "transformer_2") if self._has_two else ("transformer",)

    @property
    def boundary_ratio(self) -> float | None:
        """Below which share of the training's timesteps the second transformer takes over."""
        return float(self.index["boundary_ratio"]) if self._has_two else None

    @property
    def takes_image(self) -> bool:
        """Whether its transformer was trained on videos whose first frame is given, as TI2V-5B's was.

        `expand_timesteps` says so: such a frame's tokens have a timestep of their own.
        """
        return bool(self.index.get("expand_timesteps")) and not self._has_two

    @property
    def vae_scale_factor_spatial(self) -> int:
        """Pixels a latent, along width and height."""
        return int(self.config("vae").get("scale_factor_spatial", 8))

    @property
    def vae_scale_factor_temporal(self) -> int:
        """Frames a latent; the first frame has one of its own."""
        return int(self.config("vae").get("scale_factor_temporal", 4))

    @property
    def pixel_step(self) -> int:
        """What width and height must be multiples of: a patch of latents."""
        return self.vae_scale_factor_spatial * int(self.config("transformer").get("patch_size", (1, 2, 2))[-1])

    @functools.cache  # noqa: B019 - one checkpoint a process
    def config(self, part: str) -> Mapping[str, Any]:
        """Return a part's configuration without what does not change what it computes."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        facts = _json(self.folder / part / name)
        return {key: value for key, value in facts.items() if key not in _SAYS_NOTHING}

    def identity(self, part: str, digests: Digests) -> dict[str, str]:
        """Return the SHA-256 of each of a part's weight files by name; reads them where that was not done before."""
        return {path.name: digests.of(path) for path in self._weights(part)}

    def check(self) -> None:
        """Raise NotFound unless every part is of a class that is served, fits the others, and is whole."""
        if self.index.get("_class_name") != "WanPipeline":
            raise self._wrong(INDEX_FILE, f"it is a {self.index.get('_class_name')}, not a WanPipeline")
        for part in ("text_encoder", "vae", "scheduler", *self.transformers):
            self._check_class(part)
        self._check_sizes()
        self._check_sampling()
        if not (self.folder / "tokenizer" / "tokenizer.json").is_file():
            raise self._wrong("tokenizer", "there is no tokenizer.json")
        for part in ("text_encoder", "vae", *self.transformers):
            for _ in self._weights(part):
                pass

    @property
    def _has_two(self) -> bool:
        return (self.index.get("transformer_2") or [None, None])[1] is not None

    def _check_class(self, part: str) -> None:
        known = _CLASSES[part.removesuffix("_2")]
        found = (self.index.get(part) or [None, None])[1]
        if found not in known:
            raise self._wrong(INDEX_FILE, f"its {part} is a {found}; served is {' or '.join(known)}")
        inside = _json_class(self.folder, part)
        if inside != found:
            raise self._wrong(part, f"it is a {inside}, not the {found} that {INDEX_FILE} names")

    def _check_sizes(self) -> None:
        width = self.config("text_encoder").get("d_model")
        for part in self.transformers:
            config = self.config(part)
            if config.get("image_dim") is not None or config.get("added_kv_proj_dim") is not None:
                raise self._wrong(part, "it wants an image; only text-to-video is served")
            if config.get("in_channels") != self.config("vae").get("z_dim", 16):
                raise self._wrong(part, f"it has {config.get('in_channels')} channels, the vae's latents have others")
            if config.get("text_dim") != width:
                raise self._wrong(
                    part, f"it reads texts of width {config.get('text_dim')}, the text encoder's is {width}"
                )
        if self._has_two and self.index.get("boundary_ratio") is None:
            raise self._wrong(INDEX_FILE, "it has two transformers and no boundary_ratio")

    def _check_sampling(self) -> None:
        scheduler = self.config("scheduler")
        for option, served in _SAMPLING[scheduler["_class_name"]].items():
            value = scheduler.get(option, _SAMPLING_DEFAULTS.get(option, served))
            if value != served:
                raise self._wrong("scheduler", f"its {option} is {value}; served is {served}")

    def _weights(self, part: str) -> Iterator[Path]:
        """Yield a part's safetensors files, each of them whole, with every tensor that the index promises."""
        stem = _STEMS.get(part, "diffusion_pytorch_model")
        index, single = (
            self.folder / part / f"{stem}.safetensors.index.json",
            self.folder / part / f"{stem}.safetensors",
        )
        if not index.is_file():
            _tensor_names(single)
            yield single
            return
        places: dict[str, set[str]] = {}
        for tensor, file in _json(index).get("weight_map", {}).items():
            places.setdefault(str(file), set()).add(tensor)
        for file, tensors in sorted(places.items()):
            path = self.folder / part / file
            missing = tensors - _tensor_names(path)
            if missing:
                raise NotFound(f"{path} lacks {len(missing)} tensors, {min(missing)} among them.", param="model")
            yield path

    def _wrong(self, place: str, what: str) -> NotFound:
        return NotFound(f"{self.folder / place} cannot be served: {what}.", param="model")


_SAYS_NOTHING = frozenset({"_diffusers_version", "_name_or_path", "transformers_version", "torch_dtype", "dtype"})


def read(folder: Path) -> WanCheckpoint:
    """Return the checkpoint in `folder`; NotFound says what is missing, truncated or of another architecture."""
    checkpoint = WanCheckpoint(folder, _json(folder / INDEX_FILE))
    checkpoint.check()
    return checkpoint


def _json_class(folder: Path, part: str) -> str | None:
    if part == "scheduler":
        name = _json(folder / part / "scheduler_config.json").get("_class_name")
    else:
        config = _json(folder / part / "config.json")
        name = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    return None if name is None else str(name)


def _json(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}.", param="model") from error
    except ValueError as error:
        raise NotFound(f"{path} is not JSON: {error}.", param="model") from error
    if not isinstance(facts, dict):
        raise NotFound(f"{path} is not a JSON object.", param="model")
    return facts


def _tensor_names(path: Path) -> set[str]:
    """Return the names in a safetensors file, whose header must account for every byte of it.

    The format is https://huggingface.co/docs/safetensors: eight bytes of length, that much JSON, the tensors.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= size - 8 else {}
        header.pop("__metadata__", None)
        end = 8 + length + max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}.", param="model") from error
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise NotFound(f"{path} is not a safetensors file.", param="model") from error
    if end != size:
        raise NotFound(f"{path} is truncated or damaged: it has {size:,} bytes of {end:,}.", param="model")
    return set(header)

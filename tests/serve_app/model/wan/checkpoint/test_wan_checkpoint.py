"""A checkpoint's folder: what it says of itself, and every way in which it can be none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import NotFound
from serve_app.model.wan.checkpoint.checkpoint import read
from serve_app.model.wan.checkpoint.digests import Digests
from tests.serve_app.model.wan.tiny_checkpoint import EULER, T2V_1_3B, T2V_A14B, TI2V_5B, save

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(wan_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    return shutil.copytree(wan_folder(), tmp_path / "copy")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_kinds_of_checkpoints_say(wan_folder: Callable[..., Path]) -> None:
    """Compression, pixels' step, transformers and their boundary are read off each kind's own files."""
    said = {
        kind: (each.vae_scale_factor_spatial, each.pixel_step, each.transformers, each.boundary_ratio)
        for kind in (TI2V_5B, T2V_1_3B, T2V_A14B, EULER)
        for each in [read(wan_folder(kind))]
    }
    assert said == {
        TI2V_5B: (16, 32, ("transformer",), None),
        T2V_1_3B: (8, 16, ("transformer",), None),
        T2V_A14B: (8, 16, ("transformer", "transformer_2"), 0.875),
        EULER: (8, 16, ("transformer",), None),
    }


@pytest.mark.parametrize(
    "file",
    ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "vae/config.json", WEIGHTS],
)
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    """Without any of its files the folder is refused with the file's place in it."""
    (folder / file).unlink()
    with pytest.raises(NotFound, match=Path(file).parts[0]) as caught:
        read(folder)
    assert caught.value.param == "model"


def test_a_folder_of_pickles_is_refused(folder: Path) -> None:
    """Only safetensors are read: pickled weights can run code."""
    (folder / WEIGHTS).rename(folder / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(NotFound, match=r"diffusion_pytorch_model\.safetensors cannot be read"):
        read(folder)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("left", [0, 7, 60, -1])
def test_truncated_weights_are_seen(folder: Path, part: str, left: int) -> None:
    """An interrupted copy is refused whatever is left of it: nothing, half a header, or all but a byte."""
    (path,) = (folder / part).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(NotFound, match=r"truncated|not a safetensors") as caught:
        read(folder)
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("model_index.json", {"_class_name": "WanImageToVideoPipeline"}, "WanImageToVideoPipeline"),
        ("model_index.json", {"transformer": ["diffusers", "CogVideoXTransformer3DModel"]}, "CogVideoX"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel"),
        ("model_index.json", {"scheduler": ["diffusers", "DDIMScheduler"]}, "DDIMScheduler"),
        ("model_index.json", {"vae": [None, None]}, "its vae is a None"),
        ("transformer/config.json", {"_class_name": "WanVACETransformer3DModel"}, "WanVACE"),
        ("transformer/config.json", {"image_dim": 1280}, "only text-to-video"),
        ("transformer/config.json", {"in_channels": 36}, "36 channels"),
        ("transformer/config.json", {"text_dim": 4096}, "width 4096"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "prediction_type is epsilon"),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "use_dynamic_shifting is True"),
        ("scheduler/scheduler_config.json", {"solver_type": "bh1"}, "solver_type is bh1"),
    ],
)
def test_another_architecture_is_refused(folder: Path, file: str, changes: dict[str, Any], told: str) -> None:
    """Pipelines, classes, widths and samplers that are not served are refused by name, before anything is loaded."""
    edit(folder / file, **changes)
    with pytest.raises(NotFound, match=told):
        read(folder)


def test_two_transformers_need_a_boundary(wan_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Without it nobody could say which of the two a timestep is for."""
    folder = shutil.copytree(wan_folder(T2V_A14B), tmp_path / "copy")
    edit(folder / "model_index.json", boundary_ratio=None)
    with pytest.raises(NotFound, match="no boundary_ratio"):
        read(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\ufffe"])
def test_what_is_not_a_json_object_is_refused(folder: Path, text: str) -> None:
    """A damaged description is an error with the file's name."""
    (folder / "vae" / "config.json").write_text(text, "utf-8")
    with pytest.raises(NotFound, match=r"vae/config\.json is not"):
        read(folder)


def test_weights_in_shards(tmp_path: Path) -> None:
    """A sharded checkpoint is whole when every shard holds what the index promises; each shard has a digest."""
    folder = save(tmp_path / "sharded", TI2V_5B, max_shard_size="20kB")
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    shards = set(json.loads(index.read_text())["weight_map"].values())
    assert len(shards) > 1
    digests = Digests(tmp_path / "digests.json")
    assert set(read(folder).identity("transformer", digests)) == shards
    edit(index, weight_map=json.loads(index.read_text())["weight_map"] | {"lost.weight": min(shards)})
    with pytest.raises(NotFound, match=r"lacks 1 tensors, lost\.weight"):
        read(folder)
    (folder / "transformer" / min(shards)).unlink()
    with pytest.raises(NotFound, match=min(shards)):
        read(folder)

"""The family as its callers see it: names, card, fingerprints, and what is refused when weights are loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from serve_app.core import ModelCard
from serve_app.errors import InvalidRequest, NotFound
from serve_app.model.families import load_family
from serve_app.model.wan.checkpoint.published import PUBLISHED
from serve_app.model.wan.speed import Speed
from serve_app.model.wan.wan import WanFamily, from_folder
from tests.serve_app.model.wan.tiny_checkpoint import T2V_1_3B, TI2V_5B, Kind, save

Folders = Callable[..., Path]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def prints(card: ModelCard) -> tuple[str, str, str]:
    return card.model_fingerprint, card.text_encoder_fingerprint, card.decoder_fingerprint


def test_a_published_name_serves_a_folder(wan_folder: Folders) -> None:
    """`wan2.2-t2v-5b` with a checkpoint folder has its published name; the folder by itself is named after itself."""
    folder = wan_folder()
    named = load_family("wan2.2-t2v-5b", checkpoint=str(folder))
    by_path = load_family(str(folder))
    assert (named.card.name, by_path.card.name) == ("wan2.2-t2v-5b", f"wan/{folder.name}")
    assert prints(named.card) == prints(by_path.card)
    assert named.card.family == "wan"


def test_what_cannot_be_served_is_refused(wan_folder: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of another model, and checkpoints that are neither a folder nor to be had, are told by their field."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for options in ({"checkpoint": str(wan_folder())}, {"dtype": "float32"}):
        with pytest.raises(InvalidRequest, match="native/demo") as refused:
            load_family("native/demo", **options)  # type: ignore[arg-type]
        assert refused.value.param == next(iter(options))
    for speed in (Speed(quantization="int8"), Speed(torch_compile=True), Speed(vae_tiling=True)):
        with pytest.raises(InvalidRequest, match="native/demo") as refused:
            load_family("native/demo", speed=speed)
        assert (refused.value.param,) == speed.asked_for
    for checkpoint, told in (
        ("/no/such/folder", "neither"),
        ("Wan-AI/Nothing", "Wan-AI/Nothing"),
        (None, "Wan2.2-TI2V"),
    ):
        with pytest.raises(NotFound, match=told) as unknown:
            load_family("wan2.2-t2v-5b", checkpoint=checkpoint)
        assert unknown.value.param == "checkpoint"
    with pytest.raises(NotFound, match=r"native/demo, wan2\.2-t2v-5b") as known:
        load_family("sora-2")
    assert all(name in known.value.message for name in PUBLISHED)


def test_cards_and_token_counts_need_no_torch(wan_folder: Folders) -> None:
    """A router reads the card and counts tokens in a process that never imports torch, transformers or diffusers."""
    program = (
        "import sys\n"
        "from serve_app.model.families import load_family\n"
        f"family = load_family('wan2.2-t2v-5b', checkpoint={str(wan_folder())!r})\n"
        "assert family.card.model_fingerprint and family.count_tokens('a cat') > 1\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'accelerate', 'huggingface_hub', 'ray'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("kind", "step", "fps"), [(TI2V_5B, 32, 24), (T2V_1_3B, 16, 16)], ids=["5b", "1.3b"])
def test_the_card_is_on_the_models_grid(wan: Callable[..., WanFamily], kind: Kind, step: int, fps: int) -> None:
    """Frames are 4n + 1, pixels multiples of a patch of latents, and every default is allowed."""
    card = wan(kind).card
    assert (card.width.step, card.height.step, card.num_frames.step) == (step, step, 4)
    assert all(16 + 1 + 4 * n in card.num_frames for n in range(5))
    assert 16 not in card.num_frames
    assert card.fps.default == fps
    for name in ("width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale"):
        allowed = getattr(card, name)
        assert allowed.default in allowed
    assert 1280 in card.width
    assert (card.width.default, card.height.default, card.num_frames.default) == (832, 480, 81)
    assert (card.max_prompt_tokens, card.default_negative_prompt, card.prompt_rules.fold_case) == (512, "", False)


def test_fingerprints_follow_what_decides_a_pixel(wan: Callable[..., WanFamily], tmp_path: Path) -> None:
    """Other weights, precision, sampler or tokenizer change the fingerprints of the parts they concern, a copy none."""
    original = wan(TI2V_5B)
    folder = original.checkpoint.folder

    def changed(name: str, change: Callable[[Path], object]) -> list[bool]:
        copy = shutil.copytree(folder, tmp_path / name)
        change(copy)
        new = prints(from_folder(copy, "float32").card)
        return [one != other for one, other in zip(prints(original.card), new, strict=True)]

    def edited(file: str, **facts: object) -> Callable[[Path], object]:
        return lambda copy: (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | facts))

    def nudged(part: str, file: str) -> Callable[[Path], object]:
        def nudge(copy: Path) -> None:
            tensors = load_file(copy / part / file)
            name = min(tensors)
            save_file(tensors | {name: tensors[name] + 1}, copy / part / file)

        return nudge

    assert changed("same", lambda copy: None) == [False, False, False]
    assert changed("sampler", edited("scheduler/scheduler_config.json", flow_shift=3.0)) == [True, False, False]
    assert changed("version", edited("vae/config.json", _diffusers_version="9")) == [False, False, False]
    assert changed("transformer", nudged("transformer", WEIGHTS)) == [True, False, False]
    assert changed("text encoder", nudged("text_encoder", "model.safetensors")) == [False, True, False]
    assert changed("vae", nudged("vae", WEIGHTS)) == [False, False, True]
    assert changed("tokenizer", edited("tokenizer/tokenizer.json", version="1.1")) == [False, True, False]
    half = prints(WanFamily(original.name, original.checkpoint, "bfloat16").card)
    assert [one != other for one, other in zip(prints(original.card), half, strict=True)] == [True, True, False]


def test_fingerprints_say_what_a_server_trades(wan: Callable[..., WanFamily]) -> None:
    """Of the parts whose pixels it changes, each in its own way; a server that trades nothing keeps its cache."""
    original = wan(TI2V_5B)

    def traded(**options: Any) -> tuple[str, str, str]:
        return prints(WanFamily(original.name, original.checkpoint, "float32", Speed(**options)).card)

    plain = prints(original.card)
    assert traded() == plain
    for options, expected in (
        ({"quantization": "int8"}, [True, False, False]),
        ({"quantization": "fp8"}, [True, False, False]),
        ({"torch_compile": True}, [True, False, False]),
        ({"vae_tiling": True}, [False, False, True]),
    ):
        assert [one != other for one, other in zip(plain, traded(**options), strict=True)] == expected
    one_each = [{"quantization": "int8"}, {"quantization": "fp8"}, {"torch_compile": True}]
    assert len({traded(**options)[0] for options in one_each} | {plain[0]}) == 4
    described = WanFamily(original.name, original.checkpoint, "float32", Speed("int8", vae_tiling=True)).card
    assert "weights in int8, decoded in tiles" in described.description


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("spoil", ["missing", "left over", "misshapen"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, part: str, spoil: str) -> None:
    """A tensor too few would be random and one too many unused: the part is not loaded, and the message says which."""
    folder = save(tmp_path / "spoilt", T2V_1_3B)
    (path,) = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if tensors[name].ndim > 1)
    if spoil == "missing":
        del tensors[name]
    else:
        tensors |= (
            {name: tensors[name][:1].clone()} if spoil == "misshapen" else {"surplus.weight": tensors[name].clone()}
        )
    save_file(tensors, path, metadata={"format": "pt"})
    family = load_family(str(folder), dtype="float32")
    load = {
        "transformer": family.load_denoiser, "vae": family.load_decoder, "text_encoder": family.load_text_encoder,
    }[part]  # fmt: skip
    with pytest.raises(NotFound, match=part):
        load("cpu")

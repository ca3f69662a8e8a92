"""A CLIP checkpoint, made small here by transformers itself, as the text encoder of a model to be trained."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from serve_app.errors import InvalidRequest, Unprocessable
from serve_app.model.native.native import NativeFamily, from_folder
from serve_app.model.native.tokenizer import Tokenizer
from serve_app.model.native.weights import Checkpoint
from serve_app.model.training.recipe import SHORT, SHORT_MODEL
from serve_app.model.training.run import train
from serve_app.model.training.stages.clip import adapted, adopt

LETTERS = [*"abcdefghijklmnopqrstuvwxyz,."]
VOCABULARY = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP model of a few thousand weights, as `save_pretrained` lays it out, with CLIP's own tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    specials = {"bos_token_id": len(VOCABULARY) - 2, "eos_token_id": len(VOCABULARY) - 1}
    text = CLIPTextConfig(
        vocab_size=len(VOCABULARY), max_position_embeddings=24, hidden_act="gelu", **sizes, **specials
    )
    vision = CLIPVisionConfig(image_size=8, patch_size=4, **sizes)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).save_pretrained(folder)
    merges = [("r", "e"), ("re", "d</w>")]
    CLIPTokenizer(vocab={token: i for i, token in enumerate(VOCABULARY)}, merges=merges).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def family(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> NativeFamily:
    run = tmp_path_factory.mktemp("run")
    config = adapted(SHORT_MODEL, clip)
    adopt(config, clip, run)

    class Adopted(Checkpoint):
        """The run's file names the text encoder as the stage does; a finished checkpoint drops the stage's heads."""

        def fill(self, module: torch.nn.Module, part: str) -> None:
            from safetensors.torch import load_file

            whole = load_file(self.path)
            module.load_state_dict({k.removeprefix(f"{part}."): v for k, v in whole.items() if k.startswith(part)})

    return NativeFamily(config, Adopted(run / "text_encoder.safetensors"), Tokenizer(run / "tokenizer.json"))


def test_prompts_are_cut_into_clips_own_tokens(family: NativeFamily, clip: Path) -> None:
    """The adopted tokenizer gives the ids that transformers' CLIPTokenizer gives, specials included."""
    for prompt in ("a red circle", "Red, red.", ""):
        assert family.tokenizer.tokenize(prompt) == CLIPTokenizer.from_pretrained(clip)(prompt)["input_ids"]


def test_the_context_is_clips_last_hidden_state(family: NativeFamily, clip: Path) -> None:
    """No projection, no other activation: the embeddings are CLIP's own, and as wide."""
    (embeds,) = family.load_text_encoder("cpu").encode(["a red cat"])
    ids = torch.tensor([CLIPTokenizer.from_pretrained(clip)("a red cat")["input_ids"]])
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(clip).text_model(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=0)
    assert family.config.denoiser.context_dim == family.config.text_encoder.context_dim == 32


def test_clips_own_length_is_the_limit(family: NativeFamily) -> None:
    """A prompt of more tokens than CLIP has positions is refused, not cut."""
    assert family.card.max_prompt_tokens == 24
    with pytest.raises(Unprocessable, match="26 tokens"):
        family.load_text_encoder("cpu").encode(["abcdefghijklmnopqrstuvwx"])


def test_what_is_no_clip_checkpoint_is_refused(tmp_path: Path) -> None:
    """An empty folder and one with another model's files are told apart from CLIP's, in words."""
    with pytest.raises(InvalidRequest, match="is not a CLIP checkpoint"):
        adapted(SHORT_MODEL, tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    with pytest.raises(InvalidRequest, match=r"is not a CLIP checkpoint: it has no tokenizer\.json"):
        adopt(adapted(SHORT_MODEL, tmp_path), tmp_path, tmp_path)


def test_a_run_with_clip_trains_the_denoiser_on_it(clip: Path, tmp_path: Path) -> None:
    """The whole run on CLIP's context: its text encoder ends up in the checkpoint as it was, and nothing read again."""
    stages: set[str] = set()
    folder = train(SHORT_MODEL, SHORT, tmp_path, clip=clip, report=lambda step: stages.add(step.stage))
    assert "text_encoder" not in stages
    assert "denoiser" in stages
    made = from_folder(folder)
    (embeds,) = made.load_text_encoder("cpu").encode(["a red cat"])
    ids = torch.tensor([CLIPTokenizer.from_pretrained(clip)("a red cat")["input_ids"]])
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(clip).text_model(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(embeds, expected, atol=1e-2, rtol=0)  # half precision
    denoiser = made.load_denoiser("cpu")
    noise_pred = denoiser.predict(torch.zeros(1, 8, 8, 8, 8), torch.ones(1), [denoiser.prepare(embeds)])
    assert noise_pred.isfinite().all()

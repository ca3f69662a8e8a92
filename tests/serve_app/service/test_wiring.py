"""From settings to a planner: switches and files reach the normaliser, and the rules in the keys name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.errors import InvalidRequest
from serve_app.service.wiring import compute_device, open_builder, open_family, open_planner, open_tiers, text_device
from serve_app.settings import Settings
from serve_app.telemetry import Telemetry
from tests.serve_app.service.rig import ask


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("traditional_to_simplified", "\u4e00\u96bb\u8c93"),
        ("unify_spelling", "a grey cat"),
        ("strip_wrappers", "generate a video of a cat"),
        ("correct_typos", "a pianno"),
    ],
)
def test_switches(setting: str, text: str) -> None:
    """A rule that is switched off leaves the prompt as it is and gives the deployment other keys."""
    on, off = (open_planner(Settings(**{setting: value})).plan(ask(text)) for value in (True, False))
    assert off.spec.prompt == text != on.spec.prompt
    same, other = (open_planner(Settings(**{setting: value})).plan(ask("a cat")) for value in (True, False))
    assert same.keys.prompt != other.keys.prompt


def test_files(tmp_path: Path) -> None:
    """Synonyms and vocabulary are read, normalised like prompts, and part of the keys."""
    synonyms, words = tmp_path / "synonyms.txt", tmp_path / "words.txt"
    synonyms.write_text("sofa, Grey Couch", encoding="utf-8")
    words.write_text("togepi", encoding="utf-8")
    planner = open_planner(Settings(synonyms_file=str(synonyms), vocabulary_file=str(words)))
    assert planner.plan(ask("a togepii on a gray couch")).spec.prompt == "a togepi on a sofa"
    versions = {
        open_planner(settings).card.prompt_rules.version
        for settings in (
            Settings(), Settings(synonyms_file=str(synonyms)), Settings(vocabulary_file=str(words)),
        )
    }  # fmt: skip
    assert len(versions) == 3


@pytest.mark.parametrize("setting", ["synonyms_file", "vocabulary_file"])
@pytest.mark.parametrize("content", [None, b"\xff", b"a a, a\n"])
def test_unusable_files_are_told(tmp_path: Path, setting: str, content: bytes | None) -> None:
    """A file that is missing, no UTF-8 or nonsense is an error that names the setting, when the server starts."""
    file = tmp_path / "file.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidRequest, match=setting):
        open_planner(Settings(**{setting: str(file)}))


@pytest.mark.parametrize(
    ("l3", "setting", "filtered"),
    [
        ("s3://bucket/videos", "auto", True),
        ("s3://bucket/videos", "off", False),
        ("folder", "auto", False),
        ("folder", "on", True),
    ],
)
def test_where_the_bloom_filter_is_asked(tmp_path: Path, l3: str, setting: str, filtered: bool) -> None:
    """An S3 store is spared looks, a folder is not worth asking Redis about; the setting decides otherwise."""
    url = tmp_path.as_uri() if l3 == "folder" else l3
    settings = Settings(redis_url="redis+cluster://127.0.0.1:1", l3_url=url, l3_filter=setting)
    tiers = open_tiers(settings, Telemetry())
    assert (tiers.bloom is not None) is filtered
    assert (open_builder(tiers) is not None) is filtered


def test_the_text_encoder_may_be_elsewhere() -> None:
    """Where nothing is said it is where the rest is; `text_device` moves it alone."""
    assert text_device(Settings(device="cuda")) == compute_device(Settings(device="cuda")) == "cuda"
    apart = Settings(device="cuda", text_device="cpu")
    assert (compute_device(apart), text_device(apart)) == ("cuda", "cpu")


@pytest.mark.parametrize(("setting", "value"), [("quantization", "fp8"), ("torch_compile", True), ("vae_tiling", True)])
def test_what_wan_alone_can_trade_is_refused_by_others(setting: str, value: object) -> None:
    """A setting that would do nothing is an error with its name, before a server starts."""
    with pytest.raises(InvalidRequest, match="native/demo") as refused:
        open_family(Settings(**{setting: value}))
    assert refused.value.param == setting

"""From settings to a planner: switches and files reach the normaliser, and the rules in the keys name them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis

from serve_app.cache.objects.folder import FolderStore
from serve_app.cache.store_secret import MARKER, marker_of, require_own
from serve_app.errors import ForeignStore, InvalidRequest
from serve_app.settings import Settings
from serve_app.telemetry import Telemetry
from serve_app.wiring.model import compute_device, open_family, open_planner, text_device
from serve_app.wiring.router import open_builder
from serve_app.wiring.tiers import open_tiers, require_own_stores
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


def settings_of(monkeypatch: pytest.MonkeyPatch, secret: str, **given: object) -> Settings:
    monkeypatch.setenv("ENCORE_SECRET", secret)
    return Settings(**given)  # type: ignore[arg-type]


@pytest.fixture
def their_url(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The setting of one tier that another deployment has used."""
    if request.param == "l3_url":
        store = FolderStore(tmp_path / "l3")
        asyncio.run(require_own(store, b"their secret"))
        return {"l3_url": (tmp_path / "l3").as_uri()}
    server = request.getfixturevalue("valkey_server")
    server.flush()
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        client.set("encore:{store}:secret", marker_of(b"their secret"))
    return {"redis_url": server.url}


@pytest.mark.parametrize("their_url", ["l3_url", "redis_url"], indirect=True)
async def test_a_start_on_another_secrets_store_is_refused(
    their_url: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is served, from within an event loop too; with the right secret it may begin."""
    settings = settings_of(monkeypatch, "our secret", **their_url)
    with pytest.raises(ForeignStore, match="ENCORE_SECRET"):
        require_own_stores(settings)
    require_own_stores(settings_of(monkeypatch, "their secret", **their_url))


def test_an_outage_stops_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiers that do not answer, or a folder that cannot be used, are asked again when they are first needed."""
    (tmp_path / "file").write_bytes(b"")
    given = {"redis_url": f"unix://{tmp_path}/nobody.sock", "l3_url": (tmp_path / "file" / "l3").as_uri()}
    require_own_stores(settings_of(monkeypatch, "a secret", **given))
    away = {"l3_url": "s3://bucket", "s3_endpoint_url": "http://127.0.0.1:9", "l3_timeout_seconds": 0.5}
    require_own_stores(settings_of(monkeypatch, "a secret", **away))


def test_a_start_marks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that deploys may not have the secret that the replicas have: they mark what they use."""
    require_own_stores(settings_of(monkeypatch, "a secret", l3_url=(tmp_path / "l3").as_uri()))
    assert not (tmp_path / "l3" / MARKER).exists()


def test_l3_answers_within_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`l3_timeout_seconds` reaches whatever L3 is."""
    for url in (tmp_path.as_uri(), "s3://bucket/videos"):
        settings = settings_of(monkeypatch, "a secret", l3_url=url, l3_timeout_seconds=1.25)
        assert open_tiers(settings, Telemetry()).l3._timeout == 1.25  # type: ignore[union-attr]

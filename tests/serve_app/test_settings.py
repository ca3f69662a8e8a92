"""Settings: where values come from, what is refused, and what never travels."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from serve_app.settings import SECRETS, UNSET_SECRET, Settings

SECRET = "correct horse battery staple"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own ENCORE_ variables have no say in these tests."""
    for field in Settings.model_fields:
        monkeypatch.delenv(f"ENCORE_{field.upper()}", raising=False)


def test_defaults_make_a_server() -> None:
    """No setting is required: the laptop default is complete, and has no shared tier."""
    settings = Settings()
    assert settings.model == "native/demo"
    assert (settings.redis_url, settings.l3_url, settings.otlp_endpoint) == (None, None, None)


def test_unknown_key_is_refused() -> None:
    """A misspelt key in a YAML stops the deployment and is named."""
    with pytest.raises(ValidationError, match="l2_tll_seconds"):
        Settings.model_validate({"l2_tll_seconds": 60})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("device", "tpu"),
        ("text_device", "tpu"),
        ("quantization", "int4"),
        ("torch_compile", "max-autotune"),
        ("l1_bytes", 0),
        ("max_queued", -1),
        ("linger_seconds", -0.1),
        ("redis_timeout_seconds", 0),
        ("max_batch_size", 1.5),
    ],
)
def test_values_out_of_range_are_refused(key: str, value: object) -> None:
    """Sizes, counts and times are positive, devices are known."""
    with pytest.raises(ValidationError, match=key):
        Settings.model_validate({key: value})


def test_command_line_strings_are_numbers() -> None:
    """`serve run deployments.app:build max_queued=3` hands over text."""
    assert Settings.model_validate({"max_queued": "3", "linger_seconds": "0.5"}).max_queued == 3


def test_environment_fills_what_arguments_leave_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument wins over the environment, the environment over the default."""
    monkeypatch.setenv("ENCORE_MAX_QUEUED", "7")
    monkeypatch.setenv("ENCORE_REDIS_URL", "redis://cache:6379")
    assert Settings().max_queued == 7
    settings = Settings(max_queued=9)
    assert settings.max_queued == 9
    assert settings.redis_url == "redis://cache:6379"


def test_an_explicit_none_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that is told to have no L2 has none, whatever its node's environment says."""
    monkeypatch.setenv("ENCORE_REDIS_URL", "redis://cache:6379")
    assert Settings(redis_url=None).redis_url is None


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """cluster.yaml exports every variable on every node, those without a value too."""
    monkeypatch.setenv("ENCORE_L3_URL", "")
    monkeypatch.setenv("ENCORE_MAX_QUEUED", "")
    assert Settings().l3_url is None
    assert Settings().max_queued == Settings.model_fields["max_queued"].default


def test_bad_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that does not parse stops the server instead of being ignored."""
    monkeypatch.setenv("ENCORE_L1_BYTES", "lots")
    with pytest.raises(ValidationError, match="l1_bytes"):
        Settings()


def test_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENCORE_SECRET is the HMAC key; without it there is a placeholder that is the same everywhere."""
    assert Settings().secret_bytes == UNSET_SECRET.encode()
    monkeypatch.setenv("ENCORE_SECRET", SECRET)
    assert Settings().secret_bytes == SECRET.encode()


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_secret_among_the_arguments_is_refused(name: str) -> None:
    """A secret in a YAML is an error that does not repeat it."""
    with pytest.raises(ValueError, match="ENCORE_SECRET") as caught:
        Settings.model_validate({name: SECRET})
    assert SECRET not in str(caught.value)


def test_what_travels_has_no_secret_and_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    """`args` is plain JSON without secrets, and makes the same settings on the other side."""
    monkeypatch.setenv("ENCORE_SECRET", SECRET)
    settings = Settings(l3_url="s3://videos/encore", linger_seconds=1)
    travelled = json.dumps(settings.args())
    assert SECRET not in travelled
    assert "secret" not in json.loads(travelled)
    assert Settings.model_validate(json.loads(travelled)) == settings


def test_secret_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging the settings does not log the secret."""
    monkeypatch.setenv("ENCORE_SECRET", SECRET)
    assert SECRET not in repr(Settings())
    assert SECRET not in str(Settings().model_dump())


def test_settings_are_frozen() -> None:
    """Nobody changes a knob behind the wiring's back."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().max_queued = 1


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_what_it_is(name: str) -> None:
    """Every field has a description."""
    assert Settings.model_fields[name].description

"""Settings: where values come from, what is refused, and what never travels."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from serve_app.settings import SECRETS, UNSET_SECRET, Settings, unknown

SECRET = "correct horse battery staple"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own ENCORE_ variables have no say in these tests."""
    for field in Settings.model_fields:
        monkeypatch.delenv(f"ENCORE_{field.upper()}", raising=False)
        monkeypatch.delenv(f"ENCORE_{field.upper()}_FILE", raising=False)


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


MARK = "hunter2"


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("redis_url", f"redis://:{MARK}@cache:6379/0"),
        ("redis_url", f"unix:///run/valkey.sock?password={MARK}"),
        ("otlp_endpoint", f"http://user:{MARK}@collector:4318"),
        ("otlp_endpoint", f"https://collector/v1/traces?api_key={MARK}"),
        ("otlp_endpoint", f"https://collector/{MARK}/v1/traces"),
    ],
)
@pytest.mark.parametrize("source", ["variable", "file"])
def test_a_url_of_the_environment_does_not_travel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, url: str, source: str
) -> None:
    """Replicas get the variable's name and read their own node's; a node without it says which to set."""
    if source == "variable":
        monkeypatch.setenv(f"ENCORE_{name.upper()}", url)
    else:
        (tmp_path / "secret").write_text(f"{url}\n")
        monkeypatch.setenv(f"ENCORE_{name.upper()}_FILE", str(tmp_path / "secret"))
    settings = Settings()
    assert getattr(settings, name) == url
    assert MARK not in json.dumps(settings.args())
    assert Settings(**settings.args()) == settings
    args = settings.args()
    monkeypatch.delenv(f"ENCORE_{name.upper()}", raising=False)
    monkeypatch.delenv(f"ENCORE_{name.upper()}_FILE", raising=False)
    with pytest.raises(ValidationError, match=f"ENCORE_{name.upper()} or .*must be set on every Ray node"):
        Settings(**args)


def test_credentials_among_the_arguments_are_refused() -> None:
    """A password in a YAML or after --set is an error that says where it belongs, and does not repeat it."""
    with pytest.raises(ValueError, match="ENCORE_REDIS_URL or ENCORE_REDIS_URL_FILE") as caught:
        Settings(redis_url=f"redis://:{MARK}@cache")
    assert MARK not in str(caught.value)


def test_credentials_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither repr nor a dump of the settings tells a password of a URL."""
    monkeypatch.setenv("ENCORE_REDIS_URL", f"redis://:{MARK}@cache:6379")
    settings = Settings()
    for told in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert MARK not in told
        assert "redis://***@cache:6379" in told


def test_secrets_come_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ENCORE_SECRET_FILE is read without its last newline; two sources, no file and an empty one are named."""
    file = tmp_path / "secret"
    monkeypatch.setenv("ENCORE_SECRET_FILE", str(file))
    with pytest.raises(ValueError, match=r"ENCORE_SECRET_FILE=.* cannot be read: No such file"):
        Settings()
    file.write_text("\n")
    with pytest.raises(ValueError, match="the file is empty"):
        Settings()
    file.write_text(f"{SECRET}\n")
    assert Settings().secret_bytes == SECRET.encode()
    monkeypatch.setenv("ENCORE_SECRET", "another")
    with pytest.raises(ValueError, match="ENCORE_SECRET and ENCORE_SECRET_FILE are both set"):
        Settings()


@pytest.mark.parametrize(
    ("name", "url", "told"),
    [
        ("redis_url", "http://cache:6379", "redis://, rediss://, unix://"),
        ("redis_url", "cache:6379", "it may begin with"),
        ("redis_url", "redis://", "names no host"),
        ("redis_url", "redis://cache:port", "a port is a number"),
        ("redis_url", "redis://cache/zero", "a database's number"),
        ("redis_url", "redis+cluster://a:1,b:x", "a port is a number"),
        ("redis_url", "unix://relative", "absolute"),
        ("redis_url", "redis://ca che", "no blanks"),
        ("l3_url", "ftp://bucket", "file:///folder or s3://bucket/prefix"),
        ("l3_url", "/folder", "file:///folder"),
        ("l3_url", "file://folder", "three slashes"),
        ("l3_url", "file:///what?", "%3F"),
        ("l3_url", "s3:///prefix", "s3://BUCKET/PREFIX"),
        ("s3_endpoint_url", "minio:9000", "http://HOST:PORT"),
        ("otlp_endpoint", "grpc://collector:4317", "http://HOST:PORT"),
        ("otlp_endpoint", "http://", "names no host"),
    ],
)
def test_urls_that_cannot_work_are_refused(name: str, url: str, told: str) -> None:
    """A URL of the wrong kind or shape is refused by its setting's name, before anything connects."""
    with pytest.raises(ValidationError, match=name) as caught:
        Settings(**{name: url})  # type: ignore[arg-type]
    assert told in str(caught.value)


@pytest.mark.parametrize("url", [f"redis://:{MARK}/x@cache", f"redis://:x/{MARK}@cache", f"redis://a:b:{MARK}@c:d"])
def test_a_malformed_url_is_not_repeated(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What is said of a password that stands where a port should does not tell it."""
    monkeypatch.setenv("ENCORE_REDIS_URL", url)
    with pytest.raises(ValidationError, match="redis_url") as caught:
        Settings()
    assert MARK not in str(caught.value)
    assert "%2F" in str(caught.value)


def test_misspelt_names_are_told_with_the_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt argument is refused, a misspelt variable is told; what Kubernetes sets by itself is not."""
    with pytest.raises(ValidationError, match="no setting 'max_queud'; did you mean max_queued"):
        Settings.model_validate({"max_queud": 1})
    monkeypatch.setenv("ENCORE_REDIS_ULR", "redis://cache")
    monkeypatch.setenv("ENCORE_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("ENCORE_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("ENCORE_PORT_8000_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("ENCORE_REDIS_URL_FILE", "/run/secrets/redis_url")
    monkeypatch.setenv("ENCORE_CACHE_DIR", "/data")
    told = [line for line in unknown() if "FLIGHT" not in line]
    assert len(told) == 1
    assert "ENCORE_REDIS_ULR is no setting and has no effect; did you mean ENCORE_REDIS_URL" in told[0]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_read(name: str) -> None:
    """Each setting is an attribute that code beside settings.py takes; one that nobody reads would do nothing."""
    assert name in READ


def _attributes() -> set[str]:
    root = Path(__file__).parents[2]
    files = [*root.glob("serve_app/**/*.py"), *root.glob("deployments/**/*.py")]
    nodes = (node for file in files if file.name != "settings.py" for node in ast.walk(ast.parse(file.read_text())))
    taken = (node for node in nodes if isinstance(node, ast.Attribute))
    return {node.attr for node in taken if "settings" in ast.unparse(node.value)} | {"secret"}  # by secret_bytes


READ = _attributes()

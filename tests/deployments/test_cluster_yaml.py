"""cluster.yaml: Ray's own launcher accepts it, and every node starts with the same environment."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from serve_app.settings import Settings

ROOT = Path(__file__).parents[2]
KINDS = ("head_start_ray_commands", "worker_start_ray_commands")
NEEDED = {
    "RAY_SERVE_ENABLE_HA_PROXY",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S",
    "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH",
    "ENCORE_SECRET",
    "ENCORE_REDIS_URL",
    "ENCORE_L3_URL",
    "ENCORE_OTLP_ENDPOINT",
}


def load() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def environment_of(kind: str, secrets: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one kind's start command as the launcher would, with `ray start` replaced by `env`."""
    (command,) = [line for line in load()[kind] if "ray start" in line]
    before, _, _ = command.partition("ray start")
    env_file = folder / "encore.env"
    env_file.write_text(secrets)
    script = before.replace("/home/ray/encore.env", str(env_file)).replace("ulimit -n 65536", ":") + "env"
    return subprocess.run(["bash", "-c", script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)


def exported(kind: str, secrets: str, folder: Path) -> dict[str, str]:
    run = environment_of(kind, secrets, folder)
    assert run.returncode == 0, run.stderr
    own = dict(line.partition("=")[::2] for line in run.stdout.splitlines())
    return {name: value for name, value in own.items() if name.startswith(("RAY_", "ENCORE_", "OTEL_"))}


def test_rays_launcher_accepts_it() -> None:
    """Ray fills in its defaults and validates the result against ray-schema.json, as `ray up` does first."""
    config = prepare_config(load())
    validate_config(config)
    assert set(config["available_node_types"]) == {"head", "cpu", "gpu"}


def test_the_schema_is_really_asked() -> None:
    """A key that Ray does not know is refused, so the test above can fail."""
    config = prepare_config(load())
    config["available_node_types"]["gpu"]["min_replicas"] = 1
    with pytest.raises(Exception, match="min_replicas"):
        validate_config(config)


def test_every_kind_of_node_exports_the_same(tmp_path: Path) -> None:
    """Head and workers start Ray with one and the same environment, the operator's own additions included."""
    secrets = "ENCORE_SECRET=s3cret\nENCORE_L3_URL=s3://bucket/prefix\nENCORE_OTLP_ENDPOINT=http://c:4318\nRAY_X=1\n"
    head, worker = (exported(kind, secrets, tmp_path) for kind in KINDS)
    assert head == worker
    assert set(head) >= NEEDED | {"RAY_X"}
    assert (head["ENCORE_SECRET"], head["ENCORE_L3_URL"]) == ("s3cret", "s3://bucket/prefix")
    assert head["RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"] == "deployments.tracing:exporter"


def test_without_an_endpoint_there_is_no_tracing(tmp_path: Path) -> None:
    """The exporter is named only when there is somewhere to send spans."""
    assert exported(KINDS[0], "ENCORE_SECRET=s\n", tmp_path)["RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"] == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_without_the_secret_does_not_start(kind: str, tmp_path: Path) -> None:
    """Forgetting ENCORE_SECRET stops the launch with its name instead of serving with the placeholder."""
    run = environment_of(kind, "ENCORE_L3_URL=s3://b\n", tmp_path)
    assert run.returncode != 0
    assert "ENCORE_SECRET" in run.stderr


def test_exported_variables_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every ENCORE_ variable the nodes get is one that Settings reads, empty ones included."""
    names = [name for name in exported(KINDS[0], "ENCORE_SECRET=s\n", tmp_path) if name.startswith("ENCORE_")]
    assert {name.removeprefix("ENCORE_").lower() for name in names} <= set(Settings.model_fields)
    for name in names:
        monkeypatch.setenv(name, "")
    assert Settings().redis_url is None


def test_no_secret_is_in_the_file() -> None:
    """The secret's value comes from a file outside the tree that is mounted on every node."""
    config = load()
    (local,) = [local for remote, local in config["file_mounts"].items() if remote.endswith("encore.env")]
    assert local.startswith("~/")
    assert "ENCORE_SECRET=" not in "\n".join(config["setup_commands"])


def test_what_is_mounted_exists_and_is_enough_to_install() -> None:
    """The files the nodes install the package from are in the repository, the build's inputs among them."""
    mounts = load()["file_mounts"]
    local = {path for path in mounts.values() if not path.startswith("~/")}
    assert all((ROOT / path).exists() for path in local)
    assert {"pyproject.toml", "README.md", "serve_app", "deployments"} <= local


def test_shapes_of_the_nodes() -> None:
    """No replica fits on the head, GPU nodes start from none, and only GPU work fits on them."""
    types = load()["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["resources"] == {"CPU": 0, "GPU": 1}
    assert types["cpu"]["resources"]["CPU"] > 0


def test_versions_are_the_projects() -> None:
    """The image runs the pinned Ray on a Python the package allows."""
    assert "rayproject/ray:2.60.0-py311" in load()["docker"]["image"]
    assert '"ray[serve]==2.60.0"' in (ROOT / "pyproject.toml").read_text()


def test_a_request_may_outlive_the_longest_shutdown(tmp_path: Path) -> None:
    """HAProxy's hard stop is later than the longest graceful shutdown in gpu.yaml, or it would cut renders off."""
    hard_stop = float(exported(KINDS[0], "ENCORE_SECRET=s\n", tmp_path)["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"])
    gpu = yaml.safe_load((ROOT / "deployments/config/gpu.yaml").read_text())
    longest = max(d["graceful_shutdown_timeout_s"] for d in gpu["applications"][0]["deployments"])
    assert hard_stop > longest

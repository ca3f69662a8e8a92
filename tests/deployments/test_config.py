"""deployments/config: Serve accepts every file, Settings accepts its arguments, and the names are the code's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from deployments import app
from serve_app.settings import Settings

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "deployments/config").glob("*.yaml"))
GPU = ROOT / "deployments/config/gpu.yaml"
DEPLOYMENTS = {"CacheRouter", "TextEncoder", "Diffusion", "VideoEncoder"}

each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def load(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def deployments(path: Path) -> dict[str, dict[str, Any]]:
    return {d["name"]: d for d in load(path)["applications"][0]["deployments"]}


def test_there_are_configs() -> None:
    """The laptop's and the cluster's file exist, so the tests below test something."""
    assert {path.stem for path in CONFIGS} >= {"local", "gpu"}


@each_config
def test_serve_accepts_it(path: Path) -> None:
    """`serve deploy` validates against this very schema, which refuses what it does not know."""
    schema = ServeDeploySchema.model_validate(load(path))
    (application,) = schema.applications
    assert (application.name, application.route_prefix) == ("encore", "/")
    assert application.import_path == "deployments.app:build"


@each_config
def test_settings_accept_its_args(path: Path) -> None:
    """Every key under `args` is a setting with an allowed value, and none is a secret."""
    args = load(path)["applications"][0].get("args", {})
    assert Settings.model_validate(args)


def test_a_server_without_storage_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve run deployments/config/local.yaml` alone warns at start that jobs are refused, and which settings help."""
    for name in ("REDIS_URL", "REDIS_URL_FILE", "L3_URL", "L3_URL_FILE", "JOBS_URL"):
        monkeypatch.delenv(f"ENCORE_{name}", raising=False)
    told: list[str] = []
    monkeypatch.setattr(app.logger, "warning", lambda text, *args: told.append(text % args if args else text))
    app.build(Settings.model_validate(load(ROOT / "deployments/config/local.yaml")["applications"][0]["args"]))
    assert any("ENCORE_REDIS_URL or ENCORE_L3_URL" in each and "503" in each for each in told)


@each_config
def test_all_four_deployments_are_configured(path: Path) -> None:
    """The names are those of the code, and each says how it scales."""
    configured = deployments(path)
    assert set(configured) == DEPLOYMENTS
    for options in configured.values():
        scaling = options["autoscaling_config"]
        assert scaling["min_replicas"] <= scaling["max_replicas"]


@each_config
def test_waiting_requests_do_not_block_hits(path: Path) -> None:
    """The router takes 2,000 requests at once; Serve's default of 5 would let five waiters block every hit."""
    assert deployments(path)["CacheRouter"]["max_ongoing_requests"] == 2000
    assert load(path)["applications"][0]["args"].get("max_waiting", Settings.model_fields["max_waiting"].default) < 2000


def test_gpus_are_diffusions_alone() -> None:
    """In the cluster only Diffusion asks for GPUs, a whole one each, starts from none, and asks for no CPU."""
    options = {name: d["ray_actor_options"] for name, d in deployments(GPU).items()}
    assert options["Diffusion"] == {"num_cpus": 0, "num_gpus": 1}
    assert deployments(GPU)["Diffusion"]["autoscaling_config"]["min_replicas"] == 0
    assert all("num_gpus" not in other for name, other in options.items() if name != "Diffusion")


def test_every_replica_fits_on_some_node() -> None:
    """What a replica asks for is there on a node type of cluster.yaml, and the maxima fit the cluster's."""
    cluster = load(ROOT / "cluster.yaml")
    nodes = cluster["available_node_types"]
    for options in deployments(GPU).values():
        wanted = options["ray_actor_options"]
        assert any(
            node["resources"].get("CPU", 0) >= wanted.get("num_cpus", 1)
            and node["resources"].get("GPU", 0) >= wanted.get("num_gpus", 0)
            for name, node in nodes.items()
            if name != cluster["head_node_type"]
        )
    assert deployments(GPU)["Diffusion"]["autoscaling_config"]["max_replicas"] <= nodes["gpu"]["max_workers"]


def test_diffusion_takes_two_batches_at_most() -> None:
    """What waits beyond two batches waits in the router, so that new replicas can take it."""
    batch = load(GPU)["applications"][0]["args"]["max_batch_size"]
    diffusion = deployments(GPU)["Diffusion"]
    assert diffusion["max_ongoing_requests"] == 2 * batch
    assert diffusion["autoscaling_config"]["target_ongoing_requests"] <= batch

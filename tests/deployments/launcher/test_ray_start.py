"""Starting Ray: again when it failed, with what was slow told, and more patience than Ray has."""

from __future__ import annotations

import pytest
import ray

from deployments.launcher.launcher import SLOW_SECONDS, Stage
from deployments.launcher.ray_start import TRIES, patient_node, start
from serve_app.errors import Unavailable


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowRay:
    """A Ray whose first `failures` starts take 30 seconds and fail."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.clock = Clock()
        self.calls: list[str] = []
        self.told: list[str] = []

    def init(self) -> None:
        self.calls.append("init")
        if self.calls.count("init") <= self.failures:
            self.clock.now += 30.0
            raise RuntimeError("The current node timed out during startup.\nMore.")

    def start(self) -> None:
        start(self.init, lambda: self.calls.append("clear"), self.told.append, self.clock)


def test_a_start_that_failed_is_tried_again() -> None:
    """Proves that what a failed start left is cleared away first, and that a person is told what was slow."""
    ray = SlowRay(failures=TRIES - 1)
    ray.start()
    assert ray.calls == ["init", "clear"] * (TRIES - 1) + ["init"]
    assert len(ray.told) == TRIES - 1
    assert ray.told[0].startswith("Ray did not start within 30 s (load average ")
    assert "timed out during startup. Trying again" in ray.told[0]


def test_in_the_end_it_says_what_was_slow() -> None:
    """Proves that the last failure names the stage, the seconds, the load and what to do, and leaves nothing."""
    ray = SlowRay(failures=TRIES)
    with pytest.raises(Unavailable, match=r"Ray did not start within 30 s \(load average \d+ on \d+ cores\)") as raised:
        ray.start()
    assert f"tried {TRIES} times in {30 * TRIES} s" in raised.value.message
    assert ray.calls[-1] == "clear"


def test_a_node_may_take_longer_than_ray_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that Ray's question for its node waits for the answer while we start it, and only then."""
    calls = []

    def get_node(gcs_address: str, node_id: str) -> str:
        calls.append(node_id)
        if len(calls) < 3:
            raise RuntimeError("not there yet")
        return "the node"

    monkeypatch.setattr(ray._private.services, "get_node", get_node)
    with patient_node(30.0):
        assert ray._private.services.get_node("address", "id") == "the node"
    assert len(calls) == 3
    assert ray._private.services.get_node is get_node
    calls.clear()
    with patient_node(0.0), pytest.raises(RuntimeError, match="not there yet"):
        ray._private.services.get_node("address", "id")


def test_ray_still_asks_there() -> None:
    """Proves that this release of Ray waits for its node in the place that is made patient."""
    import inspect

    from ray._private.node import Node

    source = inspect.getsource(Node.__init__)
    assert "raylet_start_wait_time_s" in source
    assert "ray._private.services.get_node(" in source


def test_a_slow_stage_is_told() -> None:
    """Proves that every half minute of a stage is told with the load, and nothing once the server is ready."""
    clock, told = Clock(), []
    stage = Stage(clock)
    stage.enter("ray")
    for _ in range(3):
        stage.tick(told.append)
        clock.now += SLOW_SECONDS
    stage.tick(told.append)
    assert [line.partition(" (")[0] for line in told] == [
        "Ray is starting still, for 30 s", "Ray is starting still, for 60 s", "Ray is starting still, for 90 s",
    ]  # fmt: skip
    stage.enter("ready")
    clock.now += 1000
    stage.tick(told.append)
    assert len(told) == 3

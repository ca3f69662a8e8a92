"""`encore model`: an architecture's figures, for people and for programs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

Encore = Callable[..., Result]


def figures(encore: Encore, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encore("model", name, "--json").stdout)
    return found


def test_the_large_one_is_counted_and_judged(encore: Encore) -> None:
    """The JSON has parts that add up, every card, and a judgement that its own cases bear out."""
    found = figures(encore, "native/5b")
    parts = found["parameters"]
    assert parts["all"] == sum(count for name, count in parts.items() if name != "all")
    assert (found["served"], found["width"], found["height"]) == (False, 640, 480)
    assert [each["frames"] for each in found["lengths"]] == [8, 16, 24]
    assert {case["steps"] for case in found["rooflines"]} == {4, 8, 16, 30}
    assert {case["batch"] for case in found["rooflines"]} == {1, 2, 3, 4}
    names = ("precision", "steps", "frames", "batch")
    for kept in found["kept"]:
        expected = [
            {name: case[name] for name in names}
            for case in found["rooflines"]
            if case["card"] == "RTX 3090"
            and case["clip_seconds"] / kept["efficiency"] <= 4
            and case["memory_bytes"] < 10e9
        ]
        assert kept["cases"] == expected
        for everywhere in kept["everywhere"]:
            assert sum(case.items() >= everywhere.items() for case in kept["cases"]) == 12
    assert len(found["kept"][1]["cases"]) < len(found["kept"][0]["cases"])


def test_people_get_tables_and_the_answer_in_words(encore: Encore) -> None:
    """Parameters, cards and the claim are shown, and that there are no weights to serve."""
    shown = encore("model", "native/5b").stdout
    assert "native/5b, 640x480: an architecture without weights, so it cannot be served." in shown
    for words in ("123,060,480", "RTX 3090", "H200 SXM", "GFLOPs a pass", "Batches that keep"):
        assert words in shown
    flat = " ".join(shown.split())
    for share in ("100%", "50%"):
        assert f"At {share} of the RTX 3090's peaks '2 to 4 s on a 3090 under 10 GB, batch 1 to 4' holds in" in flat


def test_the_demo_is_counted_without_cards(encore: Encore) -> None:
    """The demo shows the same figures of itself, by name or alias, and the claim is not about it."""
    found = figures(encore, "encore-demo")
    assert (found["model"], found["served"], found["width"]) == ("native/demo", True, 64)
    assert [each["pass_flops"] > 0 for each in found["lengths"]] == [True] * 3
    assert found.keys() & {"rooflines", "claim", "kept"} == set()
    shown = encore("model", "native/demo").stdout
    assert f"{found['parameters']['denoiser']:,}" in shown
    assert "3090" not in shown
    assert "cannot be served" not in shown


def test_a_published_wan_model_is_counted_without_its_checkpoint(
    encore: Encore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 5B's parts, its FLOPs per pass and per clip, and the claim judged with the text encoder elsewhere."""
    monkeypatch.setattr("serve_app.cli.model.WAN_FRAMES", (17,))
    found = figures(encore, "wan2.2-t2v-5b")
    assert (found["served"], found["width"], found["elsewhere"]) == (True, 640, ["text_encoder"])
    assert found["parameters"]["denoiser"] == 4_999_787_712
    weights = found["parameters"]["denoiser"] + found["parameters"]["decoder"]
    assert found["weight_bytes"]["fp16"] == 2 * weights
    (clip,) = found["lengths"]
    assert (clip["latents"], clip["tokens"]) == ([48, 5, 30, 40], 1500)
    decode, encode = clip["decode"]["flops"], found["encode_prompt"]["flops"]
    assert clip["video_flops"]["8"] == 16 * clip["pass_flops"] + decode + 2 * encode
    kept = {(case["precision"], case["batch"]) for case in found["kept"][0]["cases"] if case["steps"] == 8}
    assert kept == {("int8", 1)}


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_an_unknown_one_is_one_line_that_names_the_known(encore: Encore, flags: list[str]) -> None:
    """Exit status 1, nothing on standard output, and the names one may ask for."""
    result = encore("model", "nope", *flags)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "encore: There is no architecture 'nope'; known: native/demo, native/5b, wan2.2-t2v-5b.\n"


def test_torch_is_imported_only_to_count() -> None:
    """A name that does not exist is refused before torch is loaded."""
    code = """
import sys
from serve_app.cli import main
sys.argv = ["encore", "model", "nope"]
try:
    main()
finally:
    print("torch" in sys.modules, "transformers" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600)
    assert (result.returncode, result.stdout) == (1, "False False\n")

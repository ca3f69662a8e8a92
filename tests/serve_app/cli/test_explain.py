"""`encore explain`: with a server, without one, and for thousands of lines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from serve_app.errors import Unavailable, Unprocessable
from serve_app.schema import VideoRequest
from serve_app.settings import Settings
from serve_app.wiring.model import open_planner
from tests.serve_app.client.wire_server import KEY, World

Encore = Callable[..., Result]
Start = Callable[..., "subprocess.Popen[bytes]"]
NOWHERE = ("--url", "http://127.0.0.1:1")


def test_the_server_knows_the_tiers(encore: Encore) -> None:
    """Proves that what the server says is shown: normalised prompt, spec, keys, tiers."""
    shown = encore("explain", "A red circle").stdout
    for told in ("'a red circle'", "model='native/demo'", KEY, "l1: no, l2: has the video, l3: not known"):
        assert told in shown


def test_json_is_the_servers_answer(encore: Encore) -> None:
    """Proves that a program gets keys and tiers as they are."""
    answer = json.loads(encore("explain", "A red circle", "--json").stdout)
    assert answer["tiers"] == {"l1": False, "l2": True, "l3": None}
    assert answer["keys"] == {"prompt": "11" * 32, "latents": "22" * 32, "video": KEY}


def test_without_a_server_all_but_the_tiers(encore: Encore) -> None:
    """Proves that the planner of this process answers, each step is shown with what is invisible, and why is said."""
    result = encore("explain", " A Red  circle\u200b!!", *NOWHERE)
    plan = open_planner(Settings()).plan(VideoRequest(prompt="a red circle"))
    assert result.exit_code == 0
    for told in ("\\u200b", "blanks: 'A Red circle!!'", "case: 'a red circle'", "tiers         not known"):
        assert told in result.stdout
    for key in (plan.keys.prompt, plan.keys.latents, plan.keys.video):
        assert key in result.stdout
    assert "bytes         depend on the request alone where the model computes on a CPU" in result.stdout
    assert "No Encore server answers" in result.stderr


def test_a_notice_is_shown(encore: Encore) -> None:
    """Proves that one prompt and a line of many tell what the model does not understand, and nothing where it does."""
    told = "The model did not understand: piano."
    assert f"notice        {told}" in encore("explain", "a red piano", *NOWHERE).stdout
    assert "notice" not in encore("explain", "a red circle", *NOWHERE).stdout
    lines = encore("explain", "-", stdin="a red piano\na red circle\n").stdout.splitlines()
    assert [json.loads(line).get("notice") for line in lines] == [told, None]


def test_fields_change_the_keys(encore: Encore) -> None:
    """Proves that options are part of the explanation, with and without `-`."""
    plan = open_planner(Settings()).plan(VideoRequest(prompt="x", seed=7, fps=8))
    fields = ("--seed", "7", "--fps", "8")
    one = json.loads(encore("explain", "x", *fields, "--json", *NOWHERE).stdout)
    line = json.loads(encore("explain", "-", *fields, stdin="x\n").stdout)
    assert one["keys"]["video"] == line["keys"]["video"] == plan.keys.video
    assert one["tiers"] is None


def test_a_refused_field_is_an_error_with_and_without_a_server(encore: Encore, world: World) -> None:
    """Proves that a server's 422 is not papered over by the planner of this process, which refuses likewise."""
    world.failure = Unprocessable("This model has other frame rates.", param="fps")
    assert encore("explain", "x", "--fps", "8").stderr == "encore: This model has other frame rates.\n"
    result = encore("explain", "x", "--fps", "77", *NOWHERE)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "'fps' 77" in result.stderr


def test_a_server_that_is_unwell_is_like_none(encore: Encore, world: World) -> None:
    """Proves that a 503 costs the tiers only."""
    world.failure = Unavailable("Starting.")
    result = encore("explain", "x", "--json")
    assert (result.exit_code, json.loads(result.stdout)["normalised"]) == (0, "x")
    assert "Starting." in result.stderr


def test_a_wrong_environment_is_one_line(encore: Encore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that a setting in the environment that cannot be read is named, not traced."""
    monkeypatch.setenv("ENCORE_MAX_QUEUED", "many")
    result = encore("explain", "-", stdin="x\n")
    assert result.exit_code == 1
    assert result.stderr.startswith("encore: The environment's ENCORE_MAX_QUEUED: ")


def test_lines_become_objects_and_no_server_is_asked(encore: Encore, world: World) -> None:
    """Proves the form of a line, and that two ways of typing one prompt have one key."""
    result = encore("explain", "-", stdin="A red circle!!\r\na red circle")
    first, second = map(json.loads, result.stdout.splitlines())
    assert set(first) == {"prompt", "normalised", "keys"}
    assert set(first["keys"]) == {"prompt", "latents", "video"}
    assert (first["prompt"], first["normalised"]) == ("A red circle!!", "a red circle")
    assert first["keys"] == second["keys"]
    assert (result.exit_code, world.requests) == (0, [])


def test_an_unusable_line_loses_nothing_else(encore: Encore) -> None:
    """Proves that empty, over-long and undecodable lines become errors in their place, and the exit status 1."""
    long = "a" * 3_000
    result = encore("explain", "-", stdin=f"one\n\n{long}\n".encode() + b"\xff\xfe\nzwei \xc3\xa4\n")
    one, empty, over, broken, last = map(json.loads, result.stdout.splitlines())
    assert result.exit_code == 1
    assert (one["normalised"], last["normalised"]) == ("one", "zwei \u00e4")
    assert empty == {"prompt": "", "error": {**empty["error"], "param": "prompt", "code": "invalid_value"}}
    assert over["prompt"] == long
    assert "3000 characters" in over["error"]["message"]
    assert "UTF-8" in broken["error"]["message"]


def test_a_server_for_lines_is_a_usage_error(encore: Encore) -> None:
    """Proves that --url is not silently ignored."""
    assert encore("explain", "-", *NOWHERE, stdin="x\n").exit_code == 2


def test_an_unknown_model_is_told_once(encore: Encore) -> None:
    """Proves that a wrong model is one error, not one per line."""
    result = encore("explain", "-", "--model", "nope", stdin="x\n" * 9)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)


def test_lines_are_answered_as_they_come(start: Start) -> None:
    """Proves that an answer does not wait for the end of the input."""
    process = start("explain", "-")
    for prompt in (b"one", b"two"):
        process.stdin.write(prompt + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["prompt"] == prompt.decode()
    assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == 0


def test_a_reader_that_leaves_is_no_trace(start: Start, place: Path) -> None:
    """Proves that `| head` ends the program without a word."""
    (place / "prompts").write_text("a red circle\n" * 20_000)
    with (place / "prompts").open() as prompts:
        process = start("explain", "-", stdin=prompts)
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) != 0


def test_thousands_of_lines_without_the_heavy_libraries(place: Path) -> None:
    """Proves that 5,000 prompts are explained in one process, and that torch, Ray and transformers are not imported."""
    code = """
import sys
from serve_app.cli import main
sys.argv = ["encore", "explain", "-"]
try:
    main()
finally:
    print("LOADED", sorted({"torch", "ray", "transformers", "av", "httpx"} & set(sys.modules)), file=sys.stderr)
"""
    lines = "".join(f"a red circle number {n} moves left!!\n" for n in range(5_000))
    done = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, text=True, check=True)
    assert len({json.loads(line)["keys"]["video"] for line in done.stdout.splitlines()}) == 5_000
    assert done.stderr == "LOADED []\n"


def test_corrections_are_told(encore: Encore) -> None:
    """Proves that a mistyped word is told to people and to programs, and stays where that was asked for."""
    told = encore("explain", "a red pianno", *NOWHERE).stdout
    assert "typos: 'a red piano'" in told
    assert "corrected     'pianno' to 'piano'" in told
    line = json.loads(encore("explain", "-", stdin="a red pianno\n").stdout)
    assert line["corrected"] == [{"from": "pianno", "to": "piano"}]
    kept = json.loads(encore("explain", "-", "--no-correct-typos", stdin="a red pianno\n").stdout)
    assert (kept["normalised"], "corrected" in kept) == ("a red pianno", False)
    assert kept["keys"]["prompt"] != line["keys"]["prompt"]


def test_the_vocabulary_of_earlier_prompts(encore: Encore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Proves that what `encore vocabulary` prints, as the setting's file, makes its words known."""
    words = encore("vocabulary", stdin="a togepi sleeps\nA Togepi runs home\n").stdout
    assert words == "togepi\n"
    file = tmp_path / "words.txt"
    file.write_text(words)
    monkeypatch.setenv("ENCORE_VOCABULARY_FILE", str(file))
    assert json.loads(encore("explain", "-", stdin="a togepii swims\n").stdout)["normalised"] == "a togepi swims"
    monkeypatch.setenv("ENCORE_VOCABULARY_FILE", str(tmp_path / "none.txt"))
    assert "vocabulary_file" in encore("explain", "-", stdin="x\n").stderr

"""`encore generate`: what is asked, what is printed, where the file goes, and what Ctrl-C does."""

from __future__ import annotations

import json
import os
import pty
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from serve_app.schema import VideoRequest, parse_request
from tests.serve_app.client.wire_server import FILE, KEY, PICTURES, World, found

Encore = Callable[..., Result]
Start = Callable[..., "subprocess.Popen[bytes]"]

RENDERING = [
    {"status": "queued", "progress": 0},
    {"status": "in_progress", "progress": 40},
    {"status": "completed", "progress": 100, "cache": found("rendered", "miss")},
]
FOREVER = [{"status": "in_progress", "progress": 40}]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_render_is_followed_saved_and_told(encore: Encore, world: World, place: Path) -> None:
    """Proves that the job's events are read to its end, the file is exact, and the report says how it came."""
    world.script = list(RENDERING)
    result = encore("generate", "A red circle", "-o", "out.mp4")
    assert result.exit_code == 0
    assert (place / "out.mp4").read_bytes() == FILE
    assert world.asked == ["POST /v1/videos", "GET /v1/videos/video_1/events", "GET /v1/videos/video_1/content"]
    for told in ("rendered in ", f"out.mp4 ({len(FILE)} bytes)", KEY, "seed 42"):
        assert told in result.stdout
    assert result.stderr == ""  # no terminal: no bar


@pytest.mark.parametrize("script", [RENDERING, RENDERING[:1] + RENDERING[-1:]])
def test_a_server_without_events_is_polled(
    encore: Encore, world: World, place: Path, script: list[dict[str, object]]
) -> None:
    """Proves that a server of an earlier release, or a proxy that cuts streams, costs no more than the steps shown."""
    world.has_events = False
    world.script = list(script)
    assert encore("generate", "A red circle", "-o", "out.mp4").exit_code == 0
    assert (place / "out.mp4").read_bytes() == FILE
    polls = ["GET /v1/videos/video_1"] * (len(script) - 1)
    events, content = "GET /v1/videos/video_1/events", "GET /v1/videos/video_1/content"
    assert world.asked == ["POST /v1/videos", events, *polls, content]


def test_json_is_one_object(encore: Encore, world: World) -> None:
    """Proves that a program can read outcome, key, waiting time, file and size."""
    world.script = list(RENDERING)
    report = json.loads(encore("generate", "A red circle", "-o", "out.mp4", "--json").stdout)
    told = {name: report[name] for name in ("outcome", "key", "embedding", "file", "bytes", "seed", "id")}
    assert told == {
        "outcome": "rendered",
        "key": KEY,
        "embedding": "miss",
        "file": "out.mp4",
        "bytes": len(FILE),
        "seed": 42,
        "id": "video_1",
    }
    assert 0 <= report["seconds"] < 20


def test_a_corrected_word_is_told(encore: Encore, world: World) -> None:
    """Proves that a prompt read otherwise than it was typed says so, and how to refuse it."""
    world.script = [now | {"corrected": [{"from": "cirlce", "to": "circle"}]} for now in RENDERING]
    result = encore("generate", "A red cirlce", "-o", "out.mp4")
    assert "cirlce → circle" in result.stdout
    assert "--no-correct-typos" in result.stdout


def test_a_notice_is_told_beside_the_report(encore: Encore, world: World) -> None:
    """Proves that what the model may not do as asked stands on standard error, and in the report for programs."""
    world.script = [now | {"notice": "The model did not understand: cat."} for now in RENDERING]
    result = encore("generate", "A cat", "-o", "out.mp4", "--json")
    assert "encore: The model did not understand: cat." in result.stderr
    assert json.loads(result.stdout)["notice"] == "The model did not understand: cat."


def test_every_field_is_an_option(encore: Encore, world: World) -> None:
    """Proves that each option arrives under its wire name, and that absent ones are not sent."""
    options = {
        "negative_prompt": "blue",
        "model": "native/demo",
        "seed": 7,
        "size": "64x32",
        "width": 64,
        "height": 32,
        "num_frames": 16,
        "seconds": 1.5,
        "fps": 8,
        "num_inference_steps": 4,
        "guidance_scale": 2.5,
        "quality": 30,
        "priority": "batch",
        "deadline_seconds": 60.5,
        "tags": "spring,summer",
    }
    for_other_clients = {"n", "metadata", "user", "safety_identifier"}  # taken because OpenAI's send them
    assert {"prompt", "correct_typos", "input_reference", *options} == set(
        VideoRequest.model_fields
    ) - for_other_clients
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    encore("generate", "A red circle", "-o", "out.mp4", *words)
    encore("generate", "A red circle", "-o", "out.mp4", "--steps", "4", "--seed", "random")
    bodies = [body for method, _, _, body, _ in world.requests if method == "POST"]
    assert bodies[0] == {"prompt": "A red circle", **options}
    assert bodies[1] == {"prompt": "A red circle", "num_inference_steps": 4, "seed": "random"}


def test_an_image_is_sent(encore: Encore, world: World, place: Path) -> None:
    """Proves that --image sends the file's bytes, and that one which cannot be read ends it before anything is sent."""
    (place / "photo.png").write_bytes(b"\x89PNG\xff")
    assert encore("generate", "A red circle", "-o", "out.mp4", "--image", "photo.png").exit_code == 0
    body = next(body for method, _, _, body, _ in world.requests if method == "POST")
    assert parse_request(body).input_reference == b"\x89PNG\xff"
    sent = len(world.requests)
    result = encore("generate", "A red circle", "--image", "none.png")
    assert (result.exit_code, len(world.requests)) == (2, sent)
    assert "'none.png' cannot be read" in result.stderr


def test_pictures_are_saved_beside_the_video(encore: Encore, world: World, place: Path) -> None:
    """Proves that each picture asked for is downloaded once, saved exactly, and told; without the option, none is."""
    files = {"thumbnail": "out.webp", "spritesheet": "out.jpg"}
    options = [word for name, file in files.items() for word in (f"--{name}", file)]
    result = encore("generate", "A red circle", "-o", "out.mp4", *options)
    assert result.exit_code == 0
    for name, file in files.items():
        assert (place / file).read_bytes() == PICTURES[name]
        assert f"{name:<13}{file}" in result.stdout
    asked = [query for method, path, query, *_ in world.requests if path.endswith("/content")]
    assert asked == [{}, {"variant": "thumbnail"}, {"variant": "spritesheet"}]
    report = json.loads(encore("generate", "A red circle", "-o", "out.mp4", "--thumbnail", "out.webp", "--json").stdout)
    assert (report["thumbnail"], "spritesheet" in report) == ("out.webp", False)


def test_a_picture_to_standard_output(encore: Encore, place: Path) -> None:
    """Proves that a picture can be piped alone, the report going elsewhere, while the video goes to its file."""
    result = encore("generate", "A red circle", "-o", "out.mp4", "--thumbnail", "-")
    assert result.stdout_bytes == PICTURES["thumbnail"]
    assert "standard output" in result.stderr
    assert (place / "out.mp4").read_bytes() == FILE


@pytest.mark.parametrize(
    "options",
    [
        ["-o", "-", "--thumbnail", "-"], ["-o", "out", "--spritesheet", "out"],
        ["--thumbnail", "out", "--spritesheet", "out"], ["--thumbnail", "missing/out"], ["--spritesheet", "."],
    ],
)  # fmt: skip
def test_an_impossible_place_of_a_picture(encore: Encore, world: World, place: Path, options: list[str]) -> None:
    """Proves that pictures that cannot be written, or would replace each other, are refused before a render."""
    result = encore("generate", "A red circle", *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("encore: ")
    assert list(place.iterdir()) == []
    assert world.requests == []


def test_a_failed_render_is_told_and_leaves_nothing(encore: Encore, world: World, place: Path) -> None:
    """Proves that the job's own error is the message, and that no part of a file is left."""
    error = {"code": "render_failed", "message": "The model exploded."}
    world.script = [{"status": "failed", "progress": 40, "error": error}]
    result = encore("generate", "A red circle", "-o", "out.mp4")
    assert (result.exit_code, result.stderr) == (1, "encore: The model exploded.\n")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("output", ["missing/out.mp4", ".", "", "/dev/null/out.mp4", "x" * 300])
def test_an_impossible_place_is_told_before_a_render(encore: Encore, world: World, place: Path, output: str) -> None:
    """Proves that nobody waits for a video that cannot be written."""
    result = encore("generate", "A red circle", "-o", output)
    assert result.exit_code == 1
    assert result.stderr.startswith("encore: Cannot write ")
    assert list(place.iterdir()) == []
    assert world.requests == []


def test_an_explicit_file_is_replaced_and_keeps_its_mode(encore: Encore, place: Path) -> None:
    """Proves that -o replaces as curl does, without loosening the permissions somebody gave the file."""
    (place / "out.mp4").write_text("old")
    (place / "out.mp4").chmod(0o600)
    assert encore("generate", "A red circle", "-o", "out.mp4").exit_code == 0
    assert (place / "out.mp4").read_bytes() == FILE
    assert stat.S_IMODE((place / "out.mp4").stat().st_mode) == 0o600


def test_a_new_file_has_the_mode_of_the_umask(encore: Encore, place: Path) -> None:
    """Proves that others may read a video where the umask lets them, unlike a temporary file."""
    before = os.umask(0o022)
    try:
        encore("generate", "A red circle", "-o", "out.mp4")
    finally:
        os.umask(before)
    assert stat.S_IMODE((place / "out.mp4").stat().st_mode) == 0o644


def test_a_link_is_followed(encore: Encore, place: Path) -> None:
    """Proves that the file behind a symbolic link is replaced, not the link."""
    (place / "real.mp4").write_text("old")
    (place / "link.mp4").symlink_to("real.mp4")
    encore("generate", "A red circle", "-o", "link.mp4")
    assert (place / "link.mp4").is_symlink()
    assert (place / "real.mp4").read_bytes() == FILE


def test_a_device_is_written_into(encore: Encore, place: Path, start: Start) -> None:
    """Proves that what is no regular file (here a named pipe; /dev/null alike) is not replaced by one."""
    os.mkfifo(place / "pipe")
    process = start("generate", "A red circle", "-o", "pipe")
    assert (place / "pipe").read_bytes() == FILE
    assert process.wait(20) == 0
    assert stat.S_ISFIFO((place / "pipe").stat().st_mode)


def test_without_a_name_the_key_names_the_file(encore: Encore, place: Path) -> None:
    """Proves that the derived name is stable, that the same video again is no conflict, and that other bytes are."""
    name = f"encore-{KEY[:16]}.mp4"
    for _ in range(2):
        assert encore("generate", "A red circle").exit_code == 0
        assert [path.name for path in place.iterdir()] == [name]
    (place / name).write_text("somebody's")
    refused = encore("generate", "A red circle")
    assert (refused.exit_code, (place / name).read_text()) == (1, "somebody's")
    assert "--force" in refused.stderr
    assert encore("generate", "A red circle", "--force").exit_code == 0
    assert (place / name).read_bytes() == FILE


def test_dash_writes_the_bytes_and_tells_the_rest_elsewhere(encore: Encore) -> None:
    """Proves that standard output holds the file alone."""
    result = encore("generate", "A red circle", "-o", "-", "--json")
    assert result.stdout_bytes == FILE
    assert json.loads(result.stderr)["file"] is None


def test_a_video_is_not_written_to_a_terminal(start: Start, world: World) -> None:
    """Proves that -o - into a terminal is refused before anything is asked."""
    master, slave = pty.openpty()
    process = start("generate", "A red circle", "-o", "-", stdout=slave)
    assert b"terminal" in process.communicate()[1]
    os.close(slave)
    os.close(master)
    assert (process.returncode, world.requests) == (1, [])


def test_a_terminal_sees_the_real_percentage(start: Start, world: World) -> None:
    """Proves that the bar goes to standard error and shows what the job says, with the step and the seconds left."""
    world.script = [{"status": "in_progress", "progress": 37}] * 3 + RENDERING[-1:]
    world.pace = 0.5
    master, slave = pty.openpty()
    process = start("generate", "A red circle", "-o", "out.mp4", stderr=slave)
    os.close(slave)
    assert b"rendered in" in process.stdout.read()
    seen = b""
    while b"37%" not in seen or b"step 37 of 100, 7 s left" not in seen:
        seen += os.read(master, 4096)
    os.close(master)
    assert process.wait(20) == 0


def test_ctrl_c_deletes_the_job(start: Start, world: World, place: Path) -> None:
    """Proves that an interrupted wait stops the render on the server, says so, and exits 130."""
    world.script = list(FOREVER)
    process = start("generate", "A red circle", "-o", "out.mp4")
    until(lambda: "GET /v1/videos/video_1/events" in world.asked)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert world.asked[-1] == "DELETE /v1/videos/video_1"
    assert told == b"encore: Stopped; job video_1 is deleted.\n"
    assert list(place.iterdir()) == []


def test_ctrl_c_while_the_job_is_being_made_deletes_it_too(start: Start, world: World) -> None:
    """Proves that an interrupt between request and answer does not leave a render that nobody knows."""
    world.script = list(FOREVER)
    world.delay = 1.0
    process = start("generate", "A red circle", "-o", "out.mp4")
    until(lambda: world.asked == ["POST /v1/videos"])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert world.asked == ["POST /v1/videos", "DELETE /v1/videos/video_1"]


def test_a_second_ctrl_c_does_not_wait_for_a_silent_server(start: Start, world: World) -> None:
    """Proves that a person can always leave."""
    world.delay = 5.0
    process = start("generate", "A red circle", "-o", "out.mp4")
    until(lambda: world.asked == ["POST /v1/videos"])
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - began < 3

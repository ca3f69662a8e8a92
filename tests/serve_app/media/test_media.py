"""Encoding: the same frames are the same bytes, everywhere, in a file that any player starts at once."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest

from serve_app.core import Frames
from serve_app.errors import RenderFailed
from serve_app.media import decode_mp4, encode_mp4, encoder_fingerprint, media, probe

# One line per (REVISION, PyAV version): the SHA-256 of clip() at 8 fps, quality 23. When this fails with an unchanged
# PyAV, encoding has changed: bump REVISION. Either way add a line here.
GOLDEN = {(1, "18.1.0"): "219b2aaf5c277e6187b129dab38944d811019188f0070d69db15d935a6a6efd4"}


def clip() -> Frames:
    """Make twelve frames of blocks that move and change, detailed enough to use all of the codec."""
    blocks = np.random.default_rng(1).integers(0, 255, (12, 12, 12, 3)).astype(np.uint8)
    return np.kron(blocks, np.ones((1, 8, 8, 1), np.uint8))


def plain(colour: tuple[int, int, int], num_frames: int = 4) -> Frames:
    return np.full((num_frames, 64, 64, 3), colour, np.uint8)


def turned(frames: Frames) -> Frames:
    """Return the same frames, laid out in memory channels first."""
    return np.ascontiguousarray(frames.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_encoding_is_the_one_its_revision_names() -> None:
    """Proves that nobody changes the bytes of a file without changing the fingerprint in every video's key."""
    assert digest(encode_mp4(clip(), fps=8)) == GOLDEN.get((media.REVISION, metadata.version("av")))


def test_another_process_with_other_threads_writes_the_same_bytes() -> None:
    """Proves that the file depends neither on the process nor on the cores it may use."""
    code = (
        "import os, sys; os.sched_setaffinity(0, {int(cpu) for cpu in sys.argv[1].split(',')})\n"
        "sys.path.insert(0, sys.argv[2]); import test_media as t; print(t.digest(t.encode_mp4(t.clip(), fps=8)))"
    )
    cpus = sorted(os.sched_getaffinity(0))

    def run(allowed: list[int], threads: str) -> str:
        arguments = [sys.executable, "-c", code, ",".join(map(str, allowed)), str(Path(__file__).parent)]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert run(cpus[:1], "1") == run(cpus, "4") == digest(encode_mp4(clip(), fps=8))


def test_the_past_of_the_process_does_not_matter() -> None:
    """Proves that a busy encoder writes what a fresh one writes (x264 needs cpu-independent=1 for it)."""
    files = set()
    for _ in range(12):
        for num_frames, fps in ((1, 16), (8, 16), (24, 6), (60, 24)):
            decode_mp4(encode_mp4(plain((50, 90, 200), num_frames), fps=fps))
        files |= {digest(encode_mp4(turned(clip()), fps=8)), digest(encode_mp4(clip(), fps=8))}
    assert len(files) == 1


def test_the_bytes_do_not_depend_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that x264 without any vector instructions writes the same file, so a cluster of mixed CPUs agrees."""
    expected = encode_mp4(clip(), fps=8)
    monkeypatch.setitem(media.CODEC_OPTIONS, "x264-params", "cpu-independent=1:asm=0")
    assert encode_mp4(clip(), fps=8) == expected


def test_x264_understands_every_option() -> None:
    """Proves that no setting is misspelt: libav only logs an unknown x264 option and carries on."""
    with av.logging.Capture() as said:
        level = av.logging.get_level()
        av.logging.set_level(av.logging.WARNING)
        try:
            encode_mp4(clip(), fps=8)
        finally:
            av.logging.set_level(level)
    assert said == []


def test_a_thread_more_is_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that the thread count is rightly pinned and in the fingerprint, and that the digest test can fail."""
    large = np.tile(clip(), (1, 4, 4, 1))
    one = encode_mp4(large, fps=8)
    monkeypatch.setattr(media, "THREADS", 4)
    assert encode_mp4(large, fps=8) != one


def test_frames_quality_and_fps_change_the_file() -> None:
    """Proves that everything the key carries beside the fingerprint has an effect."""
    files = [encode_mp4(clip(), fps=8), encode_mp4(clip(), fps=9), encode_mp4(clip(), fps=8, quality=40)]
    files.append(encode_mp4(clip()[:-1], fps=8))
    assert len({digest(data) for data in files}) == 4
    assert len(files[2]) < len(files[0])


@pytest.mark.parametrize("colour", [(200, 30, 60), (10, 250, 40), (20, 40, 230), (255, 255, 255), (0, 0, 0)])
def test_colours_survive(colour: tuple[int, int, int]) -> None:
    """Proves that pictures are converted with the matrix and range the file declares: a flat colour comes back."""
    decoded = decode_mp4(encode_mp4(plain(colour), fps=8))
    assert np.abs(decoded.astype(int) - colour).max() <= 4


def test_the_file_declares_bt709() -> None:
    """Proves that players need not guess the colours from the size, which they do differently."""
    with av.open(io.BytesIO(encode_mp4(plain((9, 9, 9)), fps=8)), "r") as container:
        codec = container.streams.video[0].codec_context
        assert (codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range) == (1, 1, 1, 1)


@pytest.mark.parametrize(("num_frames", "fps"), [(1, 16), (8, 16), (24, 6), (121, 24)])
def test_playing_time_is_exact(num_frames: int, fps: int) -> None:
    """Proves that the last frame is shown as long as the others."""
    info = probe(encode_mp4(plain((50, 90, 200), num_frames), fps=fps))
    assert (info.num_frames, info.fps) == (num_frames, fps)
    assert info.seconds == pytest.approx(num_frames / fps)


def test_views_of_any_memory_layout_are_encoded_alike() -> None:
    """Proves that a sliced or transposed array (what a decoder hands over) is read by its meaning."""
    assert not turned(clip()).flags.c_contiguous
    assert encode_mp4(turned(clip()), fps=8) == encode_mp4(clip(), fps=8)


@pytest.mark.parametrize(
    ("frames", "fps", "quality", "told"),
    [
        (np.zeros((4, 63, 64, 3), np.uint8), 8, 23, "even"),
        (np.zeros((4, 64, 31, 3), np.uint8), 8, 23, "31x64"),
        (np.zeros((0, 64, 64, 3), np.uint8), 8, 23, "num_frames"),
        (np.zeros((4, 64, 64), np.uint8), 8, 23, "num_frames"),
        (np.zeros((4, 64, 64, 4), np.uint8), 8, 23, "num_frames"),
        (np.zeros((4, 64, 64, 3), np.float32), 8, 23, "float32"),
        (np.zeros((4, 64, 64, 3), np.uint8), 0, 23, "fps"),
        (np.zeros((4, 64, 64, 3), np.uint8), 8, 52, "quality"),
    ],
)
def test_what_cannot_be_encoded_is_refused(frames: Frames, fps: int, quality: int, told: str) -> None:
    """Proves that bad input is a RenderFailed that names the reason, before libav sees it."""
    with pytest.raises(RenderFailed, match=told):
        encode_mp4(frames, fps=fps, quality=quality)


def test_a_failure_of_libav_is_a_render_failure_without_a_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Proves that foreign errors are mapped and their message is safe to show."""
    monkeypatch.setitem(media.CODEC_OPTIONS, "preset", "no-such-preset")
    with pytest.raises(RenderFailed, match="could not be encoded") as raised:
        encode_mp4(clip(), fps=8)
    assert tempfile.gettempdir() not in raised.value.message
    assert isinstance(raised.value.__cause__, av.FFmpegError)


def test_a_full_disk_is_a_render_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that a device without space (the real one Linux has for this) fails the render, not the process."""

    def write_to_full_disk(path: object, *arguments: object) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    monkeypatch.setattr(media, "_write", write_to_full_disk)
    with pytest.raises(RenderFailed, match="No space left"):
        encode_mp4(clip(), fps=8)


def test_no_file_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Proves that the temporary file is gone after success and after failure."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    encode_mp4(clip(), fps=8)
    monkeypatch.setitem(media.CODEC_OPTIONS, "preset", "no-such-preset")
    with pytest.raises(RenderFailed):
        encode_mp4(clip(), fps=8)
    assert list(folder.iterdir()) == []


@pytest.fixture
def fresh_fingerprint() -> Iterator[None]:
    encoder_fingerprint.cache_clear()
    yield
    encoder_fingerprint.cache_clear()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REVISION", 2),
        ("THREADS", 2),
        ("CODEC_OPTIONS", {"preset": "fast"}),
        ("CONTAINER_OPTIONS", {}),
        ("SCALER_FLAGS", ("BILINEAR",)),
        ("_libraries", lambda: ["libx264-00000000.so.1"]),
    ],
)
@pytest.mark.usefixtures("fresh_fingerprint")
def test_whatever_decides_the_bytes_is_in_the_fingerprint(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    """Proves that a change of any setting or library gives every video a new key."""
    before = encoder_fingerprint()
    encoder_fingerprint.cache_clear()
    monkeypatch.setattr(media, name, value)
    assert encoder_fingerprint() != before


@pytest.mark.usefixtures("fresh_fingerprint")
def test_a_wheel_is_named_by_its_bundled_libraries() -> None:
    """Proves that the codec build is read from the wheel's own list, libx264 and swscale included."""
    bundled = media._libraries()
    assert any(name.startswith("libx264") for name in bundled)
    assert any(name.startswith("libswscale") for name in bundled)


def test_without_a_wheel_the_libraries_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that a PyAV built against a system's libraries is told by their versions."""
    monkeypatch.setattr(metadata, "files", lambda name: None)
    assert f"libavcodec {av.library_versions['libavcodec']}" in media._libraries()


def test_the_fingerprint_is_cheap() -> None:
    """Proves that a router which only makes keys never loads PyAV, and gets the same fingerprint in another process."""
    code = "import sys; from serve_app.media import encoder_fingerprint as f; print(f(), 'av' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert told == [encoder_fingerprint(), "False"]

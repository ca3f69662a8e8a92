"""Reading MP4 files: what the header says, the frames, and what happens to broken files."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from serve_app.core import Frames
from serve_app.errors import RenderFailed
from serve_app.media import VideoInfo, decode_mp4, encode_mp4, probe
from serve_app.media.probe import boxes, decode_some


def moving(num_frames: int = 6) -> Frames:
    frames = np.full((num_frames, 48, 96, 3), (30, 60, 160), np.uint8)
    for index in range(num_frames):
        frames[index, 16:32, 8 * index : 8 * index + 24] = (230, 200, 20)
    return frames


def written_without_faststart(folder: Path) -> bytes:
    path = folder / "late.mp4"
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        for frame in moving():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def test_the_header_says_what_was_encoded() -> None:
    """Proves that a player learns size, length and codec, and finds the index before the pictures."""
    assert probe(encode_mp4(moving(), fps=8)) == VideoInfo(96, 48, 6, 8.0, 0.75, "h264", "yuv420p", faststart=True)


def test_faststart_is_read_from_the_file(tmp_path: Path) -> None:
    """Proves that a file with the index at its end is told as such, so that the flag means something."""
    late = written_without_faststart(tmp_path)
    order = [name for name in boxes(late) if name in ("moov", "mdat")]
    assert order == ["mdat", "moov"]
    assert not probe(late).faststart


def test_every_frame_comes_back_in_order() -> None:
    """Proves that decoding returns all frames, each close to the one that went in and closer than its neighbours."""
    frames = moving()
    decoded = decode_mp4(encode_mp4(frames, fps=8, quality=12))
    assert decoded.shape == frames.shape
    assert decoded.dtype == np.uint8
    distance = np.abs(decoded[:, None].astype(int) - frames[None]).mean(axis=(2, 3, 4))
    assert distance.argmin(axis=1).tolist() == list(range(6))
    assert distance.diagonal().max() < 3


@pytest.mark.parametrize("wanted", [[0], [5], [3], [0, 2, 5], list(range(6))])
def test_some_frames_are_those_of_all(wanted: list[int]) -> None:
    """Proves that chosen frames are those that went in at their indices, told apart from their neighbours."""
    frames = moving()
    data = encode_mp4(frames, fps=8, quality=12)
    asked: list[int] = []
    some = decode_some(data, lambda num_frames: asked.append(num_frames) or wanted)
    assert asked == [6]
    distance = np.abs(some[:, None].astype(int) - frames[None]).mean(axis=(2, 3, 4))
    assert distance.argmin(axis=1).tolist() == wanted
    assert distance.min(axis=1).max() < 2
    assert np.abs(some[:, 2, 90].astype(int) - (30, 60, 160)).max() <= 1


@pytest.mark.parametrize("wanted", [[], [6], [0, 6]])
def test_frames_that_are_not_there_are_refused(wanted: list[int]) -> None:
    """Proves that fewer frames than were asked for are never passed off as all of them."""
    with pytest.raises(RenderFailed, match="missing"):
        decode_some(encode_mp4(moving(), fps=8), lambda _: wanted)


def test_frames_are_scaled_to_fit() -> None:
    """Proves that the longer side is bounded, the shorter follows, and smaller frames stay as they are."""
    data = encode_mp4(moving(), fps=8)
    assert decode_some(data, lambda _: [0], max_side=24).shape == (1, 12, 24, 3)
    assert decode_some(data, lambda _: [0], max_side=500).shape == (1, 48, 96, 3)


@pytest.mark.parametrize("data", [b"", b"not a video " * 50, b"\0\0\0\x18ftypisom"], ids=["empty", "text", "start"])
def test_what_is_no_video_is_refused(data: bytes) -> None:
    """Proves that foreign errors are mapped in both readers."""
    with pytest.raises(RenderFailed, match="could not be read"):
        probe(data)
    with pytest.raises(RenderFailed, match="could not be read"):
        decode_mp4(data)


def test_a_cut_file_is_refused() -> None:
    """Proves that a download which ended early does not pass for a shorter video."""
    data = encode_mp4(moving(), fps=8)
    with pytest.raises(RenderFailed, match="could not be read"):
        decode_mp4(data[: len(data) - 200])


def test_a_file_without_a_picture_is_refused() -> None:
    """Proves that sound alone is no video."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.time_base, sound.pts = 8000, Fraction(1, 8000), 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(RenderFailed, match="no picture"):
        probe(target.getvalue())


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (struct.pack(">I4s4xI4s", 12, b"ftyp", 8, b"moov"), ["ftyp", "moov"]),
        (struct.pack(">I4sQ4xI4s", 1, b"mdat", 20, 8, b"moov"), ["mdat", "moov"]),
        (struct.pack(">I4sI4s", 0, b"mdat", 8, b"moov"), ["mdat"]),
        (struct.pack(">I4sI4s", 3, b"what", 8, b"moov"), ["what"]),
        (struct.pack(">I4s", 2**31, b"mdat"), ["mdat"]),
        (b"\0\0", []),
    ],
    ids=["plain", "64 bits", "to the end", "broken", "beyond the end", "too short"],
)
def test_boxes_are_walked_as_the_format_says(data: bytes, names: list[str]) -> None:
    """Proves the three forms of a box's size, and that a broken one ends the walk instead of looping."""
    assert list(boxes(data)) == names

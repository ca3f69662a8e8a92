"""A finished file in a real browser: headless Chromium plays it to its end and reports what it saw.

The page and the file come from a server on loopback, the page posts its report there. Debian's package is `chromium`;
without it the test is skipped, except in CI, where that is a failure.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.media import encode_mp4

PATIENCE = 60.0  # seconds; a cold start of Chromium on a busy machine takes ten
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-component-update",
    "--disable-background-networking",
    "--no-first-run",
    "--autoplay-policy=no-user-gesture-required",
)
# Not a saturated blue: libyuv, which converts for Chromium, caps that coefficient and shows (20, 40, 230) 11 too dark.
RED, BLUE, GREEN = (200, 30, 60), (60, 90, 160), (10, 220, 40)
PAGE = b"""<!doctype html><meta charset="utf-8"><title>playback</title><video muted playsinline></video><script>
const video = document.querySelector("video");
const report = body => fetch("/report", {method: "POST", body: JSON.stringify(body)});
const pixel = (x, y) => {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth; canvas.height = video.videoHeight;
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0);
  return [...context.getImageData(x, y, 1, 1).data].slice(0, 3);
};
let started = null;
video.onloadeddata = () => {
  started = [pixel(16, 32), pixel(112, 32)];
  video.play().catch(e => report({error: "" + e}));
};
video.onerror = () => report({error: video.error.message});
video.onended = () => report({
  width: video.videoWidth, height: video.videoHeight, duration: video.duration, position: video.currentTime,
  first: started, last: [pixel(16, 32), pixel(112, 32)],
});
video.src = "/video.mp4";
</script>"""


@pytest.fixture
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found:
        return found
    if os.environ.get("CI"):
        pytest.fail("CI wants Chromium (Debian package chromium)")
    pytest.skip("Chromium is not installed (Debian package chromium)")


@contextmanager
def serving(files: dict[str, tuple[str, bytes]]) -> Iterator[tuple[str, queue.Queue[dict[str, Any]]]]:
    """Serve `files` (path: content type, body) on a free loopback port; posted JSON lands in the queue."""
    reports: queue.Queue[dict[str, Any]] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = files.get(self.path, ("", b""))
            self._answer(200 if kind else 404, kind or "text/plain", body)

        def do_POST(self) -> None:
            reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer(200, "text/plain", b"")

        def log_message(self, *arguments: object) -> None:
            pass

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", reports
        server.shutdown()
        thread.join()


def seen_by(chromium: str, profile: Path, video: bytes, page: bytes = PAGE) -> dict[str, Any]:
    """Return the page's report on `video`."""
    files = {"/": ("text/html", page), "/video.mp4": ("video/mp4", video)}
    with serving(files) as (url, reports):
        command = [chromium, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}", url]
        # A session of its own, so that the browser's children end with it.
        browser = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            return reports.get(timeout=PATIENCE)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()


def test_chromium_plays_a_file_to_its_end(chromium: str, tmp_path: Path) -> None:
    """Proves size, playing time and colours as a viewer gets them: red beside blue at first, green at the end."""
    frames = np.full((12, 64, 128, 3), RED, np.uint8)
    frames[:, :, 64:] = BLUE
    frames[8:, :, :64] = GREEN
    seen = seen_by(chromium, tmp_path, encode_mp4(frames, fps=16))
    assert "error" not in seen, seen
    assert (seen["width"], seen["height"]) == (128, 64)
    assert seen["duration"] == pytest.approx(12 / 16, abs=0.001)
    assert seen["position"] == pytest.approx(12 / 16, abs=0.001)
    assert np.abs(np.subtract(seen["first"], [RED, BLUE])).max() <= 8, seen
    assert np.abs(np.subtract(seen["last"], [GREEN, BLUE])).max() <= 8, seen


def test_chromium_refuses_a_broken_file(chromium: str, tmp_path: Path) -> None:
    """Proves that the page's report means something: what does not play is reported as an error."""
    seen = seen_by(chromium, tmp_path, b"not a video" * 100)
    assert "error" in seen

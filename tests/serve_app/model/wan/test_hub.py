"""A checkpoint that is downloaded: the real client of the Hugging Face Hub against a server here that speaks its wire.

The wire is https://huggingface.co/docs/hub/api: what a revision has, then each file under its commit, with an ETag.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from safetensors.torch import load_file, save_file

from serve_app.model.families import load_family
from serve_app.model.wan.checkpoint.published import PUBLISHED

NAME = "wan2.2-t2v-5b"
COMMIT = "c0ffee" + 34 * "0"


class Hub:
    """One repository out of a folder; `asked` is what was downloaded, `others` are revisions: commits and folders."""

    def __init__(self, repository: str, folder: Path) -> None:
        self.asked: list[str] = []
        self.others: dict[str, tuple[str, Path]] = {}
        self._folder = folder
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(False)

            def do_GET(self) -> None:
                self._answer(True)

            def _answer(self, body: bool) -> None:
                path = urlsplit(self.path).path
                told = path.removeprefix(f"/api/models/{repository}").removeprefix(f"/{repository}").split("/")
                commit, folder = hub.revision(told[2] if len(told) > 2 else "main")
                self.commit = commit
                resolve = f"/{repository}/resolve/{commit}/"
                if path.startswith(f"/api/models/{repository}/tree/"):
                    listed = [
                        {"type": "file", "path": str(each.relative_to(folder)), "size": each.stat().st_size, "oid": "0"}
                        for each in folder.rglob("*")
                        if each.is_file()
                    ]
                    self._send(json.dumps(listed).encode(), body)
                elif path.startswith(f"/api/models/{repository}"):
                    self._send(json.dumps({"id": repository, "sha": commit}).encode(), body)
                elif path.startswith(resolve) and (folder / path.removeprefix(resolve)).is_file():
                    hub.asked += [path.removeprefix(resolve)] if body else []
                    self._send((folder / path.removeprefix(resolve)).read_bytes(), body)
                else:
                    self.send_response(404)
                    self.send_header("x-error-code", "RepoNotFound")
                    self.send_header("content-length", "0")
                    self.end_headers()

            def _send(self, data: bytes, body: bool) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.send_header("etag", f'"{hashlib.sha1(data).hexdigest()}"')
                self.send_header("x-repo-commit", self.commit)
                self.end_headers()
                if body:
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def revision(self, name: str) -> tuple[str, Path]:
        """Return the commit and the files of a branch, a tag or a commit."""
        by_commit = {commit: (commit, folder) for commit, folder in self.others.values()}
        return (self.others | by_commit).get(name, (COMMIT, self._folder))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(wan_folder: Callable[..., Path]) -> Iterator[Hub]:
    made = Hub(PUBLISHED[NAME], wan_folder())
    yield made
    made.close()


def start(url: str, home: Path, options: str = "") -> subprocess.CompletedProcess[str]:
    """Open the published model in a process that knows the Hub under `url`; it prints two fingerprints."""
    program = (
        "from serve_app.model.families import load_family\n"
        f"card = load_family({NAME!r}{options}).card\n"
        "print(card.model_fingerprint, card.text_encoder_fingerprint)\n"
    )
    environment = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home), "XDG_CACHE_HOME": str(home)}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=600)


def test_a_published_model_comes_from_the_hub(hub: Hub, wan_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Without a folder the model's own Hub id is downloaded, whole and once, and is the same model; then it is here."""
    here = load_family(NAME, checkpoint=str(wan_folder())).card
    known = [here.model_fingerprint, here.text_encoder_fingerprint]
    first = start(hub.url, tmp_path)
    assert first.stdout.split() == known, first.stderr
    assert len(hub.asked) == len(set(hub.asked))
    assert {"model_index.json", "tokenizer/tokenizer.json", "vae/config.json"} < set(hub.asked)
    downloaded = list(hub.asked)
    assert start(hub.url, tmp_path).stdout.split() == known
    assert hub.asked == downloaded
    hub.close()
    assert start(hub.url, tmp_path).stdout.split() == known


def test_the_revision_is_what_is_downloaded(hub: Hub, wan_folder: Callable[..., Path], tmp_path: Path) -> None:
    """The setting `revision` picks what is downloaded, and other weights there make another model fingerprint."""
    changed = Path(shutil.copytree(wan_folder(), tmp_path / "changed"))
    weights = next((changed / "transformer").glob("*.safetensors"))
    tensors = load_file(weights)
    name = min(tensors)
    save_file(tensors | {name: tensors[name] + 1}, weights)
    hub.others["v2"] = ("beef" + 36 * "0", changed)
    here = load_family(NAME, checkpoint=str(wan_folder())).card
    told = start(hub.url, tmp_path / "home", ", revision='v2'")
    model, text_encoder = told.stdout.split() or pytest.fail(told.stderr)
    assert model == load_family(NAME, checkpoint=str(changed)).card.model_fingerprint != here.model_fingerprint
    assert text_encoder == here.text_encoder_fingerprint


def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    """A Hub id that does not exist is told by its name before anything is loaded."""
    refused = start(hub.url, tmp_path, ", checkpoint='Somebody/Nothing'")
    assert refused.returncode == 1
    assert "NotFound" in refused.stderr
    assert "Checkpoint Somebody/Nothing is neither a folder nor to be had from the Hugging Face Hub" in refused.stderr

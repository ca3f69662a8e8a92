"""Where a video or a picture of it goes: a file that appears whole or not at all, standard output, or a device.

The place is opened before a render is asked for, so no render is made for a video that cannot be written.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from serve_app.errors import Conflict, InvalidRequest

Save = Callable[[bytes, str], str | None]
"""Store a file, given its bytes and its key; returns the name it has, None for standard output."""


@contextmanager
def opened(output: str | None, *, force: bool) -> Iterator[Save]:
    """Open the place `output` names: a file that may exist, `-`, or None for a name out of the key.

    Raises InvalidRequest for what cannot be written, also when saving. Saving without a name raises Conflict when
    other bytes lie there, unless `force`.
    """
    if output == "-":
        yield _standard_output()
        return
    target = None if output is None else Path(os.path.realpath(output))  # resolve() would raise for a loop of links
    if target is not None and _is_device(target):
        yield partial(_write_device, target)
        return
    folder = Path.cwd() if target is None else target.parent
    with _part(folder, target) as part:
        yield partial(_named, part, folder, force) if target is None else partial(_given, part, target, str(output))


def _standard_output() -> Save:
    if sys.stdout.isatty():
        raise InvalidRequest("A video or picture would garble the terminal; redirect standard output or name a file.")

    def save(data: bytes, key: str) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    return save


def _is_device(target: Path) -> bool:
    with _told(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return target.exists() and not target.is_file()


def _write_device(path: Path, data: bytes, key: str) -> str:
    """Write into what is no regular file (/dev/null, a named pipe), which a rename would replace."""
    with _told(path):
        path.write_bytes(data)
    return str(path)


@contextmanager
def _part(folder: Path, target: Path | None) -> Iterator[Path]:
    """Make an empty file in `folder` with the mode that the finished one shall have; remove it unless renamed."""
    part = folder / f".encore-{secrets.token_hex(8)}.part"
    with _told(target or folder):
        part.touch(0o666, exist_ok=False)
    try:
        if target is not None and target.exists():
            with _told(target):
                target.open("ab").close()  # a rename would replace a write-protected file too
                shutil.copymode(target, part)
        yield part
    finally:
        part.unlink(missing_ok=True)


def _given(part: Path, target: Path, name: str, data: bytes, key: str) -> str:
    with _told(target):
        part.write_bytes(data)
        part.replace(target)
    return name


def _named(part: Path, folder: Path, force: bool, data: bytes, key: str) -> str:
    target = folder / f"encore-{key[:16]}.mp4"
    with _told(target):
        part.write_bytes(data)
        if force:
            part.replace(target)
            return target.name
        try:
            os.link(part, target)  # unlike a rename it never replaces
        except FileExistsError:
            if target.read_bytes() != data:
                raise Conflict(f"{target.name} exists with other content; use --force or -o.") from None
    return target.name


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidRequest(f"Cannot write {path}: {error.strerror or error}.", param="output") from error

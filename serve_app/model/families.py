"""The model families by name: which one serves a name, an alias or a folder.

Importing this module imports no torch: a family's card and token counting need none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serve_app.errors import InvalidRequest, NotFound
from serve_app.model.model import Family
from serve_app.model.native import native
from serve_app.model.wan import wan
from serve_app.model.wan.checkpoint.checkpoint import INDEX_FILE
from serve_app.model.wan.checkpoint.published import PUBLISHED, Dtype
from serve_app.model.wan.speed import PLAIN, Speed


def load_family(
    name: str,
    *,
    checkpoint: str | None = None,
    revision: str | None = None,
    dtype: Dtype | None = None,
    speed: Speed = PLAIN,
    batch_invariant: bool | None = None,
) -> Family:
    """Return the family that serves `name`: a card's name or alias, or the path of a folder with a model in it.

    The folder is one that `encore train` made, or a Wan checkpoint in diffusers' layout. checkpoint: the folder or Hub
    id that a published model's weights are read from, by default its own Hub id. revision: the branch, tag or commit
    there. dtype: what a Wan model computes in. speed: what a Wan model trades for memory or time. batch_invariant:
    whether bytes depend on the request alone, on every device; None: on CPUs. InvalidRequest as well where it is asked
    for beside `torch_compile`.
    NotFound names the known models or says what is wrong with the folder; InvalidRequest for an option that the model
    does not have.
    """
    if batch_invariant and speed.torch_compile:
        message = (
            "Settings 'batch_invariant' and 'torch_compile' exclude each other: compiled sums depend on the batch."
        )
        raise InvalidRequest(message, param="batch_invariant")
    folder = checkpoint_path(checkpoint or name)
    if revision is not None and (folder is not None or name not in PUBLISHED):
        raise InvalidRequest("Setting 'revision' is for checkpoints from the Hugging Face Hub.", param="revision")
    if name in PUBLISHED:
        return wan.named(name, folder or checkpoint, dtype, speed, batch_invariant, revision)
    if checkpoint is not None:
        raise InvalidRequest(f"Setting 'checkpoint' is for {', '.join(PUBLISHED)}; not for {name}.", param="checkpoint")
    if folder is not None and (folder / INDEX_FILE).is_file():
        return wan.from_folder(folder, dtype, speed, batch_invariant)
    if dtype is not None:
        raise InvalidRequest(f"Setting 'dtype' is for Wan's models; {name} computes in its own.", param="dtype")
    for setting in speed.asked_for:
        raise InvalidRequest(f"Setting '{setting}' is for Wan's models; {name} has none such.", param=setting)
    return _native(name, folder, batch_invariant)


def checkpoint_path(name: str) -> Path | None:
    """Return the absolute folder that a model's name means: as in shells, a path has a slash (`./run`)."""
    if "/" not in name or name in _families():
        return None
    try:
        folder = Path(name).expanduser().absolute()
    except RuntimeError:  # ~name of a user who does not exist
        return None
    return folder if folder.is_dir() else None


def _native(name: str, folder: Path | None, batch_invariant: bool | None) -> Family:
    if folder is not None:
        return native.from_folder(folder, batch_invariant)
    for known, make in _families().items():
        family = make(batch_invariant)
        if name in (known, *family.card.aliases):
            return family
    raise NotFound(f"There is no model '{name}'; known: {', '.join((*_families(), *PUBLISHED))}.", param="model")


def _families() -> dict[str, Callable[[bool | None], Family]]:
    return {"native/demo": native.demo}

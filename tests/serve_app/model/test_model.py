import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.errors import NotFound
from serve_app.model.families import checkpoint_path, load_family
from tests.serve_app.model.training.short_run import ShortRun


@pytest.mark.parametrize("name", ["native/demo", "encore-demo"])
def test_a_family_is_found_by_name_and_alias(name: str) -> None:
    """The card's name and its alias lead to one and the same family."""
    assert load_family(name) is load_family("native/demo")
    assert load_family(name).card.name == "native/demo"


def test_an_unknown_model_is_a_404_that_names_the_known_ones() -> None:
    """A model nobody has is NotFound on the field `model`, and the message helps."""
    with pytest.raises(NotFound, match="native/demo") as caught:
        load_family("sora-2")
    assert caught.value.param == "model"


def test_cards_and_token_counts_need_no_torch() -> None:
    """A router reads the card and counts tokens in a process that never imports torch or transformers."""
    program = (
        "import sys\n"
        "from serve_app.model.families import load_family\n"
        "family = load_family('encore-demo')\n"
        "assert family.card.model_fingerprint and family.count_tokens('') == 2\n"
        "heavy = {'torch', 'transformers', 'einops', 'ray'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_trained_folder_is_a_model(short_run: ShortRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's folder or its checkpoint's, by absolute or relative path, is one model named after the run."""
    folder = short_run.folder
    by_run, by_checkpoint = load_family(str(folder)), load_family(str(short_run.checkpoint))
    assert by_run.card == by_checkpoint.card
    assert (by_run.card.name, by_run.card.aliases) == (f"native/{folder.name}", (f"encore-{folder.name}",))
    monkeypatch.chdir(folder.parent)
    assert load_family(f"./{folder.name}").card == by_run.card
    copy = shutil.copytree(short_run.checkpoint, tmp_path / "my model!")
    moved = load_family(str(copy)).card
    assert moved.name == "native/my-model-"
    assert moved.model_fingerprint == by_run.card.model_fingerprint


def test_a_path_has_a_slash_and_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder here never hides a model's name, and a path that is no folder is an unknown model."""
    monkeypatch.chdir(tmp_path)
    for name in ("native/demo", "encore-demo", "run"):
        (tmp_path / name).mkdir(parents=True)
    assert [checkpoint_path(name) for name in ("native/demo", "encore-demo", "run", "./nowhere", "~nobody/x")] == [
        None
    ] * 5
    assert checkpoint_path("./run") == tmp_path / "run"


@pytest.mark.parametrize("broken", ["{", "[]", json.dumps({"text_encoder": {"eyes": 2}})])
def test_a_broken_checkpoint_is_not_found(short_run: ShortRun, tmp_path: Path, broken: str) -> None:
    """Missing weights or a configuration of another version are NotFound with the path."""
    with pytest.raises(NotFound, match="not a checkpoint"):
        load_family(str(tmp_path))
    copy = shutil.copytree(short_run.checkpoint, tmp_path / "copy")
    (copy / "config.json").write_text(broken)
    with pytest.raises(NotFound, match=r"config\.json does not describe"):
        load_family(str(copy))

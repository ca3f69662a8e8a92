import subprocess
import sys

import pytest

from serve_app.errors import NotFound
from serve_app.model.model import load_family


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
        "from serve_app.model.model import load_family\n"
        "family = load_family('encore-demo')\n"
        "assert family.card.model_fingerprint and family.count_tokens('a cat') == 7\n"
        "heavy = {'torch', 'transformers', 'einops', 'ray'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

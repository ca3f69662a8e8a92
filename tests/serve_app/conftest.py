"""What tests of several floors share: a model trained in seconds."""

from __future__ import annotations

import pytest

from tests.serve_app.model.training.short_run import ShortRun
from tests.serve_app.model.training.short_run import short_run as run


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> ShortRun:
    """A finished run of the short recipe, by one worker; nobody may write into it."""
    return run(tmp_path_factory.mktemp("run") / "tiny")

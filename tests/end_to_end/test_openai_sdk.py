"""The unmodified `openai` package against the whole line: what its users do works without reading our documents."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from serve_app.media import probe
from tests.end_to_end.conftest import Cluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The Videos API:DeprecationWarning"),
]


@pytest.fixture
def sdk(cluster: Cluster) -> Iterator[openai.OpenAI]:
    """An SDK client whose errors are not retried, so that a test sees the first answer."""
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_create_poll_download(sdk: openai.OpenAI) -> None:
    """`create_and_poll` ends with a completed job whose content is a playable MP4 of the size and length asked for."""
    video = sdk.videos.create_and_poll(prompt="a green square grows", size="64x64", seconds="4", poll_interval_ms=200)
    assert (video.status, video.progress, video.size, video.seconds) == ("completed", 100, "64x64", "4")
    assert video.model_extra["cache"]["outcome"] == "rendered"
    data = sdk.videos.download_content(video.id).read()
    info = probe(data)
    assert (info.width, info.height, info.num_frames, info.fps) == (64, 64, 24, 6)
    assert sdk.videos.download_content(video.id, variant="thumbnail").read().startswith(b"RIFF")
    assert sdk.videos.download_content(video.id, variant="spritesheet").read().startswith(b"\xff\xd8")


def test_the_same_again_is_complete_at_once(sdk: openai.OpenAI) -> None:
    """A repeat in another form is a completed job in its very first answer, from the router's memory, same bytes."""
    first = sdk.videos.create_and_poll(prompt="A blue star falls", poll_interval_ms=200)
    again = sdk.videos.create(prompt="  a BLUE star   falls!! ", extra_body={"seed": "42", "num_frames": 16})
    assert (again.status, again.model_extra["cache"]["outcome"]) == ("completed", "l1")
    assert again.model_extra["cache"]["key"] == first.model_extra["cache"]["key"]
    assert sdk.videos.download_content(again.id).read() == sdk.videos.download_content(first.id).read()


def test_list_over_several_pages(sdk: openai.OpenAI) -> None:
    """The SDK's own paging walks through all jobs, newest first, each once."""
    made = [sdk.videos.create(prompt=f"a red circle number {n}").id for n in range(5)]
    listed = [video.id for video in sdk.videos.list(limit=2)]
    assert [video_id for video_id in listed if video_id in made] == made[::-1]
    assert len(listed) == len(set(listed))


def test_delete(sdk: openai.OpenAI) -> None:
    """A deleted job is gone for retrieve and content, and says 404 with a code."""
    video = sdk.videos.create_and_poll(prompt="a small white dot", poll_interval_ms=200)
    assert sdk.videos.delete(video.id).deleted is True
    for ask in (sdk.videos.retrieve, sdk.videos.download_content):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(video.id)
        assert caught.value.code == "not_found"


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"prompt": "x", "size": "65x64"}, openai.UnprocessableEntityError, "size"),
        ({"prompt": "", "size": "64x64"}, openai.UnprocessableEntityError, "prompt"),
        ({"prompt": "x", "model": "sora-2"}, openai.NotFoundError, "model"),
        ({"prompt": "x", "extra_body": {"nonsense": "1"}}, openai.UnprocessableEntityError, "nonsense"),
        ({"prompt": "x", "extra_body": {"priority": "now"}}, openai.UnprocessableEntityError, "priority"),
    ],
)
def test_errors(sdk: openai.OpenAI, fields: dict[str, object], kind: type[openai.APIStatusError], param: str) -> None:
    """A refused request raises the SDK's own class and names the field at fault."""
    with pytest.raises(kind) as caught:
        sdk.videos.create(**fields)  # type: ignore[arg-type]
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"

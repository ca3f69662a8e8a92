"""The answer's form: what the OpenAI SDK reads, and nothing that it would trip over."""

import pytest
from openai.types import Video

from serve_app.schema import CacheInfo, VideoError, VideoObject


def a_video(**fields: object) -> VideoObject:
    standard = {"id": "video_1", "model": "m", "status": "queued", "progress": 0, "created_at": 1, "size": "64x64"}
    return VideoObject.model_validate(
        standard
        | {"seconds": "1", "seed": 42, "num_frames": 16, "fps": 16, "quality": 23}
        | {"num_inference_steps": 16, "guidance_scale": 2.0}
        | fields
    )


@pytest.mark.parametrize("status", ["queued", "in_progress", "completed", "failed"])
def test_the_sdk_reads_it(status: str) -> None:
    """The SDK's own model takes the object, standard fields under their names, extras beside them."""
    cache = CacheInfo(outcome="l1", key="k")
    mine = a_video(status=status, cache=cache, error=VideoError(code="render_failed", message="no"))
    theirs = Video.construct(**mine.model_dump(mode="json"))  # as the SDK does: types and literals are not enforced
    assert (theirs.id, theirs.object, theirs.status, theirs.seconds) == ("video_1", "video", status, "1")
    assert theirs.error is not None
    assert theirs.error.code == "render_failed"
    assert theirs.model_extra is not None
    assert theirs.model_extra["cache"] == {"outcome": "l1", "key": "k", "embedding": None}


def test_no_fifth_status() -> None:
    """A status the API does not have cannot leave the server: SDK pollers would stop at it."""
    with pytest.raises(ValueError, match="status"):
        a_video(status="cancelled")

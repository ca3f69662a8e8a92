"""What a finished video is offered as, in the OpenAI Videos API's words: itself, its thumbnail, its sprite sheet.

Both pictures are made from the bytes of the stored file alone, so they need no model and no latents, exist for every
video that was ever stored, and show what a player shows. The same video gives the same bytes.
"""

from __future__ import annotations

from enum import StrEnum

from serve_app.media.contact_sheet import tiled
from serve_app.media.picture import encode_picture
from serve_app.media.probe import decode_some

SHEET_FRAMES = 16
SHEET_COLUMNS = 4
SHEET_CELL = 320  # pixels; 121 frames of 1280x704 become a sheet of 1280x704


class Variant(StrEnum):
    """A form of a finished video; the values are those of `GET /v1/videos/{id}/content?variant=`."""

    VIDEO = "video"
    THUMBNAIL = "thumbnail"
    SPRITESHEET = "spritesheet"

    @property
    def media_type(self) -> str:
        """The Content-Type."""
        return {"video": "video/mp4", "thumbnail": "image/webp", "spritesheet": "image/jpeg"}[self]


def thumbnail(video: bytes) -> bytes:
    """Return the middle frame of an MP4 file, in full size, as a WebP; raises RenderFailed for an unreadable file."""
    (frame,) = decode_some(video, lambda num_frames: [num_frames // 2])
    return encode_picture(frame, "webp")


def spritesheet(video: bytes) -> bytes:
    """Return up to 16 frames of an MP4 file, evenly apart, four to a row, as a JPEG.

    The first and the last frame are among them; larger ones are scaled down to 320 pixels on their longer side. Raises
    RenderFailed for an unreadable file.
    """
    frames = decode_some(video, evenly_apart, max_side=SHEET_CELL)
    return encode_picture(tiled(frames, min(SHEET_COLUMNS, len(frames))), "jpeg")


def evenly_apart(num_frames: int) -> list[int]:
    """Return the indices of the frames on a sprite sheet, ascending, each once."""
    if num_frames <= SHEET_FRAMES:
        return list(range(num_frames))
    return [index * (num_frames - 1) // (SHEET_FRAMES - 1) for index in range(SHEET_FRAMES)]

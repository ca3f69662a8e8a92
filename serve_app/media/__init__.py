"""MP4 files from frames and back: see `media` (writing), `probe` (reading), `contact_sheet`, `variant` (pictures)."""

from serve_app.media.contact_sheet import contact_sheet
from serve_app.media.media import encode_mp4, encoder_fingerprint
from serve_app.media.probe import VideoInfo, decode_mp4, probe
from serve_app.media.variant import Variant, spritesheet, thumbnail

__all__ = [
    "Variant",
    "VideoInfo",
    "contact_sheet",
    "decode_mp4",
    "encode_mp4",
    "encoder_fingerprint",
    "probe",
    "spritesheet",
    "thumbnail",
]

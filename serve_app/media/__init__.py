"""MP4 files from frames and back; see `media` (writing), `probe` (reading) and `contact_sheet` (one picture)."""

from serve_app.media.contact_sheet import contact_sheet
from serve_app.media.media import encode_mp4, encoder_fingerprint
from serve_app.media.probe import VideoInfo, decode_mp4, probe

__all__ = ["VideoInfo", "contact_sheet", "decode_mp4", "encode_mp4", "encoder_fingerprint", "probe"]

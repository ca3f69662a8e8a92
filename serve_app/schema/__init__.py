"""The wire: what a client may send (`request`), how it resolves to numbers (`resolve`), what it gets (`video`)."""

from serve_app.schema.request import VideoRequest, parse_request
from serve_app.schema.resolve import resolve
from serve_app.schema.video import CacheInfo, ErrorBody, VideoError, VideoEvent, VideoObject

__all__ = [
    "CacheInfo",
    "ErrorBody",
    "VideoError",
    "VideoEvent",
    "VideoObject",
    "VideoRequest",
    "parse_request",
    "resolve",
]

"""Errors that Encore raises on purpose are a line in Serve's log, not a page of traceback.

Serve 2.60 logs whatever leaves a replica's method with its whole traceback as ERROR: a render that was cancelled
too, once in each deployment that it passed.
"""

from __future__ import annotations

import logging

from ray.exceptions import RayTaskError

from serve_app.errors import EncoreError, RenderCancelled


def expected_errors_in_one_line() -> None:
    """Shorten what Serve's logger of this replica says of an EncoreError; a cancelled render is no error at all."""
    logger = logging.getLogger("ray.serve")
    if shorten not in logger.filters:
        logger.addFilter(shorten)


def shorten(record: logging.LogRecord) -> bool:
    """Rewrite the record of an EncoreError; every record is kept."""
    error = record.exc_info[1] if record.exc_info else None
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, EncoreError):
        record.msg, record.args = f"{record.getMessage()} {type(cause).__name__}: {cause.message}", ()
        record.exc_info = record.exc_text = None
        if isinstance(cause, RenderCancelled):
            record.levelno, record.levelname = logging.INFO, "INFO"
    return True

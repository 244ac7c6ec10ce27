"""What happened, as structured events with stable names.

``emit(log, "round.closed", round=3, accepted=3)`` prints ``12:00:01 round.closed round=3
accepted=3`` for people, or one JSON object per line when a program asked for that.
"""

from __future__ import annotations

import json
import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from artel.protocol.terminal import clean, printable

LEVELS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "critical",
}
"""As logs name them; the names of :mod:`logging` are changed by a library that a node loads."""
LOG_PARTS, MAX_LOG_BYTES = 3, 4 << 20
"""A log file that is full is set aside; so many of them are kept, as ``NAME.1`` and so on."""


def emit(log: logging.Logger, name: str, /, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event.

    :param name: dotted and stable, for example ``round.closed``
    :param fields: short values; what a person or a program needs to know about it
    """
    if log.isEnabledFor(level):
        log.log(level, name, extra={"event": name, "fields": fields})


class _Human(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = self.formatTime(record, "%H:%M:%S")
        fields = getattr(record, "fields", {})
        text = " ".join(f"{key}={_plain(value)}" for key, value in fields.items())
        name = record.getMessage()
        level = "" if record.levelno < logging.WARNING else f"{LEVELS[record.levelno]} "
        line = f"{time} {level}{name} {text}".rstrip()
        if record.exc_info:
            line += "\n" + clean(self.formatException(record.exc_info))
        return line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": round(record.created, 3),
            "level": LEVELS[record.levelno],
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _plain(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    # Values can come from a peer: no control characters, and no line that looks like another one.
    text = printable(text)
    return json.dumps(text, ensure_ascii=False) if " " in text else text


def configure(
    *,
    json_lines: bool = False,
    verbose: bool = False,
    file: Path | None = None,
    screen: bool = True,
) -> None:
    """Send events to standard error, and to ``file`` (always everything, one line each).

    :param screen: whether anything goes to standard error

    What cannot be written, as on a full disk, is not: whoever works on goes on without its log.
    """
    logging.raiseExceptions = False  # else each such event prints a traceback in its place
    root = logging.getLogger("artel")
    root.setLevel(logging.DEBUG)
    root.propagate = False
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    if screen:
        shown = logging.StreamHandler(sys.stderr)
        shown.setLevel(logging.DEBUG if verbose else logging.INFO)
        shown.setFormatter(_Json() if json_lines else _Human())
        root.addHandler(shown)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        size, parts = MAX_LOG_BYTES, LOG_PARTS
        kept = RotatingFileHandler(
            file, "a", size, parts, encoding="utf-8", errors="backslashreplace"
        )
        kept.setFormatter(_Json() if json_lines else _Human())
        root.addHandler(kept)

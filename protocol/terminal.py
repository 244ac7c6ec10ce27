"""What may reach a terminal or a log: what it can show, and nothing that could steer it.

A manifest's text, a peer's words, a file's name come from strangers. They pass two gates: each is
made one line where it is put into a sentence (:func:`printable`), and whatever is printed passes
:class:`Screen`, which knows nothing of where it comes from.
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterable
from typing import TextIO, cast

_INVISIBLE = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
"""DEL, C1, marks that turn the direction of text, line separators, the byte-order mark. A list of
our own: what ``str.isprintable`` says changes with the version of Unicode."""
_STEERING = re.compile(f"[\x00-\x1f{_INVISIBLE}]")
_UNSAFE = re.compile(f"(?<!^)\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f{_INVISIBLE}]")
"""Line ends and tabs are text, and so is a line that begins with a return: a progress line."""
_LOOKALIKES = str.maketrans(
    {"✓": "+", "✗": "x", "→": "->", "…": "...", "·": "-", "–": "-", "—": "-", "×": "x", "│": "|"}
    | {"“": '"', "”": '"', "‘": "'", "’": "'", "•": "*"}
)
_ERRORS = "artel"


def steers(text: str) -> bool:
    """Whether a text that should be one line has a character that could steer a terminal.

    Gives the same answer on every machine, so it may decide what a manifest can say.
    """
    return _STEERING.search(text) is not None


def printable(text: str) -> str:
    """Foreign text as a part of one line, whatever is in it."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)


def clean(text: str) -> str:
    """Text of several lines without characters that could steer a terminal."""
    return _UNSAFE.sub("?", text)


class Screen:
    """A text stream that lets no control characters through; otherwise as the one behind it."""

    def __init__(self, stream: TextIO) -> None:
        self.raw = stream
        """For what draws on the terminal itself."""

    def write(self, text: str) -> int:
        """Write the text, cleaned; returns its length."""
        self.raw.write(clean(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of the texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self.raw, name)


def prepare() -> None:
    """Make standard output and standard error of this process safe to print anything to.

    No character ends a command: what the terminal's encoding lacks is spelt in ASCII.
    """
    codecs.register_error(_ERRORS, _spell)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, Screen):  # None: closed by whoever started us
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS)
        setattr(sys, name, cast(TextIO, Screen(stream)))


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Something in ASCII for what an encoding lacks, as an error handler of :mod:`codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_LOOKALIKES)
    return text.encode("ascii", "backslashreplace").decode(), error.end

"""One line that people paste, and how it is found in what a terminal, a mail or a chat made of it.

PREFIX + base64url of canonical JSON + ``.`` + the first 8 hex digits of the SHA-256 of the part
before, so that a line that was cut off or mistyped is noticed before anything is done with it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from artel.protocol import canonical
from artel.protocol.errors import DecodeError, UsageError
from artel.protocol.schema import Record, parsed

MAX_CHARACTERS = 4096
MAX_PASTED = 4 * MAX_CHARACTERS
"""With the text around it and what mail adds to every line."""

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Line:
    """A kind of line.

    :param prefix: small letters, digits and a point at the end
    :param name: what it is, for errors
    :param hint: what to do about one that is wrong
    """

    prefix: str
    name: str
    hint: str

    def encode(self, body: Mapping[str, Any]) -> str:
        """The line to paste."""
        data = canonical.dumps(dict(body))
        text = self.prefix + base64.urlsafe_b64encode(data).decode().rstrip("=")
        return f"{text}.{_checksum(text)}"

    def decode(self, text: str, kind: type[R]) -> R:
        """Read a line as people paste it. White space, quoting and characters that nobody sees may
        stand anywhere in it.

        :raises UsageError: there is none in the text, or only a part of one
        """
        if len(text) > MAX_PASTED:
            raise UsageError(f"this is too long to be an Artel {self.name}", self.hint)
        plain = "".join(filter(_counts, text))
        if self.prefix not in plain:
            raise UsageError(f"this is not an Artel {self.name}", self.hint)
        found = re.findall(rf"{re.escape(self.prefix)}[A-Za-z0-9_-]+\.[0-9a-f]{{8}}", plain)
        if not found:
            raise UsageError(f"the {self.name} is cut short, its end is missing", self.hint)
        lines = [line for line in found if line[-8:] == _checksum(line[:-9])]
        if not lines or len(lines[0]) > MAX_CHARACTERS:
            raise UsageError(
                f"a part of the {self.name} is missing, or was changed on the way", self.hint
            )
        try:
            encoded = lines[0][len(self.prefix) : -9]
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True)
            return parsed(kind, data, f"the {self.name}", MAX_CHARACTERS)
        except (binascii.Error, ValueError, DecodeError):
            raise UsageError(f"the {self.name} cannot be read", self.hint) from None


def _counts(character: str) -> bool:
    """Whether it is no white space, no mail's quote, no mark without a width (Cf: BOM, hyphen)."""
    added = character.isspace() or character in ">|" or unicodedata.category(character) == "Cf"
    return not added


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]

"""Documents: what grows with the members of a round, beside the entry that names it by its hash.

An entry has at most 8 KiB. The lists that a round's members fill lie in a **document**: canonical
JSON of the fields that the kind says (:attr:`.body.Body.DOCUMENT`), whose SHA-256 stands in the
body as ``document``. So the log binds a document as it binds the entry, and whoever holds the
ledger holds both. A leaf without its document is not decoded, and so never folded.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from artel.protocol import canonical
from artel.protocol.dsse import Leaf
from artel.protocol.errors import CheckFailed, DecodeError

MAX_DOCUMENT_BYTES = 1 << 20
"""The lists of 1,024 members take at most half of it."""
FOLDER = "document"
"""Path of the documents beside a log's tiles: ``document/`` and the hash in hex."""
_PATH = re.compile(FOLDER + "/([0-9a-f]{64})")
_HEAD, _FIELD = b'{"payload":"', b'"document":"'


class MissingDocument(DecodeError):
    """An entry names a document, and who gave the entry did not give that."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(
            f"entry {kind}: the document {name} that it names is missing",
            "fetch the ledger again, or from somebody else: whoever holds it holds its documents",
        )


def path_of(name: str) -> str:
    """Where a source of the log has a document."""
    return f"{FOLDER}/{name}"


def named_by(path: str) -> str:
    """The document (hex) that a path leads to; "" when it is the path of something else."""
    match = _PATH.fullmatch(path)
    return match[1] if match is not None else ""


def document_of(leaf: bytes) -> str:
    """The document (hex) that an entry names; "" when it names none, or is no entry."""
    payload = _payload(leaf)
    if _FIELD not in payload:  # most entries: they are not parsed for this
        return ""
    try:
        value = canonical.loads(payload)
    except DecodeError:
        return ""
    name = value.get("document") if isinstance(value, dict) else None
    return name if isinstance(name, str) and named_by(path_of(name)) else ""


def _payload(leaf: bytes) -> bytes:
    end = leaf.find(b'"', len(_HEAD))
    try:
        return base64.b64decode(leaf[len(_HEAD) : end]) if leaf.startswith(_HEAD) else b""
    except binascii.Error:
        return b""


def attached(leaves: Iterable[bytes], get: Callable[[str], bytes]) -> Iterator[bytes]:
    """The same leaves; those that name a document with it.

    :param get: the document with this SHA-256 (hex)
    """
    for leaf in leaves:
        name = document_of(leaf)
        yield Leaf(leaf, get(name)) if name else leaf


def beside(entry: Path) -> Path:
    """The file of an entry's document, by that of the entry."""
    return entry.with_name(f"{entry.name.removesuffix('.json')}.{FOLDER}.json")


def require_named(name: str, document: bytes) -> bytes:
    """The document, if it is the one of this name.

    :raises CheckFailed: when it is another
    """
    if hashlib.sha256(document).hexdigest() != name:
        raise CheckFailed(f"{path_of(name)} is another document than its name says")
    return document


def divide(value: dict[str, Any], fields: Sequence[str]) -> tuple[dict[str, Any], bytes]:
    """What of a body is signed as such, and the document that the rest becomes; b"" for none.

    :raises DecodeError: the document would be too large
    """
    if not fields:
        return value, b""
    document = canonical.dumps({name: value[name] for name in fields})
    if len(document) > MAX_DOCUMENT_BYTES:
        raise _too_large(document)
    rest = {name: item for name, item in value.items() if name not in fields}
    return rest | {"document": hashlib.sha256(document).hexdigest()}, document


def join(
    kind: str, value: Mapping[str, Any], document: bytes, fields: Sequence[str]
) -> dict[str, Any]:
    """Inverse of :func:`divide`; the fields themselves are not looked at.

    :param kind: of the entry, for errors
    :raises DecodeError: the document is missing, another one, or not made of exactly these fields
    """
    if not fields:
        return dict(value)
    rest = dict(value)
    name = rest.pop("document", None)
    if not isinstance(name, str) or not named_by(path_of(name)):
        raise DecodeError(f"entry {kind}: document: not the SHA-256 of one")
    if not document:
        raise MissingDocument(kind, name)
    if len(document) > MAX_DOCUMENT_BYTES:
        raise _too_large(document)
    if hashlib.sha256(document).hexdigest() != name:
        raise DecodeError(f"entry {kind}: its document is another than the one that it names")
    listed = canonical.loads(document)
    if not isinstance(listed, dict) or listed.keys() != set(fields) or listed.keys() & rest.keys():
        raise DecodeError(f"entry {kind}: its document does not consist of {', '.join(fields)}")
    return rest | listed


def _too_large(document: bytes) -> DecodeError:
    return DecodeError(f"document of {len(document)} bytes, at most {MAX_DOCUMENT_BYTES} allowed")

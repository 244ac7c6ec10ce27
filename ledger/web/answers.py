"""Answers to HTTP requests, and the questions in them, as the routes of a ledger share them."""

from __future__ import annotations

import gzip

from aiohttp import web

from artel.ledger.sync.source import CERTIFIED_PATH, CREDIT_PATH
from artel.ledger.tlog.tiles import CHECKPOINT_PATH, ENTRIES, TILE_WIDTH, Tile
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError, UsageError
from artel.protocol.net.wire import Refused

FOREVER = "public, max-age=31536000, immutable"
SHORT = "public, max-age=2"
MAX_NUMBER = (1 << 53) - 1

_FORBIDDEN = ("wrong_signers", "bad_signature", "no_quorum", "barred", "not_drawn", "own_work")
_CONFLICT = ("duplicate", "stale", "wrong_sequence", "out_of_order", "key_in_use")


def error(status: int, message: str, hint: str, code: str = "") -> web.Response:
    """An answer that says what is wrong; ``code`` is for programs."""
    body = {"error": message, "hint": hint} | ({"code": code} if code else {})
    return web.json_response(body, status=status)


def busy(message: str, status: int) -> web.Response:
    """An answer that asks to come back in a moment."""
    response = error(status, message, "try again in a moment", "busy")
    response.headers["Retry-After"] = "2"
    return response


def log_file(request: web.Request, path: str, data: bytes) -> web.Response:
    """A file of the log, by its path below ``/ledger/``."""
    if path.startswith("tile/"):
        return tile_bytes(request, Tile.parse(path), data)
    if path.startswith("credit/") and path != CREDIT_PATH:
        headers = {"Cache-Control": FOREVER}
        return web.Response(body=data, content_type="application/octet-stream", headers=headers)
    if path not in (CHECKPOINT_PATH, CERTIFIED_PATH):
        return json_text(data)
    # SPEC: The Signed Tree Head MUST be served as a checkpoint at <prefix>/checkpoint with
    # Content-Type: text/plain; charset=utf-8. This endpoint is mutable, so its headers SHOULD
    # prevent caching beyond a few seconds.
    headers = {"Cache-Control": SHORT}
    return web.Response(body=data, content_type="text/plain", charset="utf-8", headers=headers)


def tile_bytes(request: web.Request, tile: Tile, data: bytes) -> web.Response:
    """A tile or an entry bundle; blocks for a moment when a bundle is compressed."""
    # SPEC: Tiles are served with Content-Type: application/octet-stream. This endpoint is
    # immutable, so its caching headers SHOULD be long-lived.
    # SPEC: Logs MAY delete any partial tile once the corresponding full tile is available.
    full = tile.width == TILE_WIDTH
    headers = {"Cache-Control": FOREVER if full else "public, max-age=86400"}
    if tile.level == ENTRIES:
        # SPEC: Entry bundles SHOULD be compressed at the HTTP layer. Logs MAY use Content-Encoding:
        # gzip with no negotiation, or any compression algorithm requested by the client.
        headers["Vary"] = "Accept-Encoding"
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            headers["Content-Encoding"] = "gzip"
            data = gzip.compress(data, 6, mtime=0)
    return web.Response(body=data, content_type="application/octet-stream", headers=headers)


def json_text(data: bytes) -> web.Response:
    """JSON that may be a few seconds old."""
    headers = {"Cache-Control": SHORT}
    return web.Response(
        body=data, content_type="application/json", charset="utf-8", headers=headers
    )


def download(data: bytes, content_type: str, name: str, cache: str) -> web.Response:
    """A file to be saved under a name of ours."""
    headers = {"Cache-Control": cache, "Content-Disposition": f'attachment; filename="{name}"'}
    charset = "utf-8" if content_type.startswith("text/") else None
    return web.Response(body=data, content_type=content_type, charset=charset, headers=headers)


def missing(cause: ArtelError) -> web.Response:
    """What the tree does not have."""
    return error(404, cause.message, cause.hint or "see /ledger/checkpoint for the size")


def refusal(refused: ArtelError) -> web.Response:
    """The answer to somebody whose statement was not taken."""
    code = refused.code if isinstance(refused, Refused) else ""
    if code == "busy":
        return busy(f"{refused.message}: {refused.hint}", 429)
    if isinstance(refused, DecodeError | UsageError):
        return error(400, refused.message, refused.hint, "malformed")
    if isinstance(refused, CheckFailed) or code in _FORBIDDEN:
        return error(403, refused.message, refused.hint, code or "failed")
    if isinstance(refused, Refused):
        status = 409 if code in _CONFLICT else 400
        return error(status, refused.message, refused.hint, code)
    return error(503, refused.message, refused.hint, "failed")


def html(text: bytes, status: int = 200) -> web.Response:
    """A page for people."""
    return web.Response(status=status, body=text, content_type="text/html", charset="utf-8")


# --- questions ------------------------------------------------------------------------------------


async def body_of(request: web.Request, limit: int) -> bytes:
    """The body of a request, of at most ``limit`` bytes.

    :raises UsageError: when it is longer
    """
    length = request.content_length
    if length is None or length <= limit:
        data = await request.content.read(limit + 1)
        while len(data) <= limit and not request.content.at_eof():
            data += await request.content.read(limit + 1 - len(data))
        if len(data) <= limit:
            return data
    raise UsageError(f"the body is longer than {limit:,} bytes", "send one signed statement")


def whole(given: str, name: str, low: int = 0, high: int = MAX_NUMBER) -> int:
    """A number from a path or a query.

    :raises UsageError: when it is none, or out of bounds
    """
    if given.isascii() and given.isdigit() and len(given) < 17 and low <= int(given) <= high:
        return int(given)
    raise UsageError(f"{name} is not a whole number from {low} to {high}", f"for example {low}")

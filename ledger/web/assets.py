"""The files that pages load: ours, and those of others beside their licences, all from this server.

Without them the pages say the same; they only do not change by themselves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from artel.ledger.web.answers import FOREVER, error
from artel.ledger.web.openapi import TEXT, says

STATIC = Path(__file__).with_name("static")
PATH = "/static/"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".json": "application/json"}


@dataclass(frozen=True)
class Asset:
    """A file, and where pages find this version of it: browsers keep it for ever."""

    url: str
    data: bytes
    content_type: str

    @classmethod
    def read(cls, file: Path) -> Asset:
        data = file.read_bytes()
        version = hashlib.sha256(data).hexdigest()[:12]
        return cls(f"{PATH}{file.name}?{version}", data, _TYPES[file.suffix])


ASSETS = {file.name: Asset.read(file) for file in STATIC.iterdir() if file.suffix in _TYPES}


def url_of_asset(name: str) -> str:
    """Where a page loads a file from.

    :raises KeyError: there is none of this name
    """
    return ASSETS[name].url


@says("A file that pages load.", None, *_TYPES.values(), name=TEXT)
async def answer(request: web.Request) -> web.Response:
    """One of the files, by its name."""
    asset = ASSETS.get(request.match_info["name"])
    if asset is None:
        return error(404, "there is nothing here", "see /")
    headers = {"Cache-Control": FOREVER}
    return web.Response(
        body=asset.data, content_type=asset.content_type, charset="utf-8", headers=headers
    )

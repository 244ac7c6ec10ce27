"""Whoever a person names: by an invite, an address, a URL or a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from artel.ledger.store.published import DATABASE_NAME
from artel.ledger.sync.source import FolderSource, Holder, HttpSource
from artel.ledger.tlog.tiles import CHECKPOINT_PATH
from artel.protocol.errors import UsageError
from artel.protocol.invite import PREFIX, Invite
from artel.protocol.paths import expanded


def hold(target: str) -> tuple[Holder, str]:
    """Whoever a person names, and the run id that an invite adds ("" without one).

    :param target: an invite, an http(s) URL, a multiaddr with /p2p/PEER, a folder of tiles, a home
    :raises UsageError: when it is none of these
    :raises CheckFailed: the ledger of the home is damaged
    """
    folder = expanded(Path(target))
    is_folder = bool(target) and os.path.isdir(folder)  # also of what is too long for a name
    if re.match("[a-z]+://", target):
        return HttpSource(target), ""
    if target.startswith("/") and "/p2p/" in target:
        return _peer(target), ""
    if PREFIX in target and not is_folder:
        invite = Invite.decode(target)
        return _peer(*invite.peers), invite.run
    if not is_folder:
        raise UsageError(
            f"{target[:200]!r} is no invite, no URL, no multiaddr and no folder",
            "write artel1..., http(s)://HOST[:PORT], /ip4/HOST/tcp/PORT/p2p/PEER or a folder",
        )
    if (folder / DATABASE_NAME).is_file():
        from artel.ledger.sync.serving import HomeHolder

        return HomeHolder(folder), ""
    if not (folder / CHECKPOINT_PATH).exists():
        raise UsageError(
            f"there is no ledger in {folder}: neither {CHECKPOINT_PATH} and tile/ nor a home's "
            f"{DATABASE_NAME}",
            "name a mirror's folder, or the home of a node or a coordinator",
        )
    return FolderSource(folder), ""


def _peer(*addresses: str) -> Holder:
    from artel.ledger.sync.lightnode import PeerHolder

    return PeerHolder(addresses)

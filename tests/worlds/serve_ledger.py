"""Serves the ledger of a test's run over libp2p and HTTP until its input ends.

Takes entries and aliases, as a coordinator does. Prints the multiaddr and the URL.

usage: serve_ledger.py HOME RULES, which are sections of the manifest as JSON
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path
from typing import Any

from artel.ledger import entries
from artel.ledger.fold.alias import open_alias
from artel.ledger.fold.effects import Fold
from artel.ledger.fold.shares import check
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.sync.serving import LedgerService
from artel.ledger.web.server import Gate
from artel.ledger.web.site import LedgerSite
from artel.protocol.net import wire
from host_world import start
from ledger_world import World


async def main(home: Path, rules: dict[str, Any]) -> None:
    world = World(**rules)
    host = await start(home / "host")
    heads = HeadStore(home / HEADS_NAME)
    try:
        with LedgerStore.open(home / DATABASE_NAME, run=world.run) as store:
            fold = Fold.open(store)

            async def submit(_who: str, leaf: bytes) -> tuple[int, str]:
                entry = entries.decode(leaf)
                reason = check(fold.state, entry)
                if reason:
                    raise wire.Refused("it would change nothing", code=reason)
                note = store.append([entry], world.sign, fold.beside)
                fold.settle()
                return store.size - 1, note

            async def set_alias(_who: str, statement: bytes) -> None:
                wish = open_alias(statement, fold.state)
                heads.set_alias(wish.account, wish.alias, wish.team, wish.time)

            service = LedgerService(
                store, heads, world.run, lambda: fold.state, submit=submit, set_alias=set_alias
            )
            await host.serve(wire.LEDGER, service.answer)
            site = LedgerSite(
                store,
                heads,
                lambda: fold.state,
                submit=lambda leaf, who: submit(who, leaf),
                set_alias=lambda statement, who: set_alias(who, statement),
            )
            gate = Gate()
            application = gate.application()
            site.add_routes(application)
            listener = socket.create_server(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            async with gate.listening(application, listener):
                print((await host.addresses())[0], f"http://127.0.0.1:{port}", flush=True)
                await asyncio.to_thread(sys.stdin.read)
    finally:
        heads.close()
        await host.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), json.loads(sys.argv[2])))

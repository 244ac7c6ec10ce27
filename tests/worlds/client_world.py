"""Homes and holders of one small run, as the readers of ledgers meet them."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from artel.ledger import entries
from artel.ledger.entries.documents import document_of, path_of
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.tlog import note, tiles
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.ledger.tlog.cosignature import add_lines, cosign, witness_name
from artel.protocol.dsse import Leaf
from artel.protocol.identity import Identity
from ledger_world import TOKENS, World, key
from places import ROOT

COSIGNED_AT = 1_700_000_000


def write_key(path: Path, owner: Identity) -> None:
    """A key file as :mod:`protocol.identity` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(owner.encode())
    path.chmod(0o600)


def cosigned(text: str, *witnesses: Identity, at: int = COSIGNED_AT) -> str:
    """The note with a cosignature line of each of these nodes."""
    signed = note.parse(text)
    lines = [cosign(node, witness_name(node.peer_id), signed.text, at) for node in witnesses]
    return add_lines(signed, lines).encode()


def claim(world: World, member: Identity, round: int, attempt: int = 0) -> dict[str, Any]:
    """A line of claims.jsonl."""
    entry = world.contribution(member, round, attempt).encode()
    blob, _ = world.blob(round, attempt, member)
    return {
        "round": round,
        "attempt": attempt,
        "entry": entries.entry_id(entry),
        "blob": blob,
        "tokens": TOKENS,
        "time": COSIGNED_AT + round,
    }


def write_claims(home: Path, *claims: dict[str, Any]) -> None:
    lines = "".join(f"{json.dumps(item)}\n" for item in claims)
    (home / "claims.jsonl").write_text(lines)


def become_member(home: Path, world: World, number: int) -> None:
    """Put the keys of one member and its owner into a home."""
    write_key(home / "node.key", world.members[number])
    write_key(home / "account.key", world.owners[number])


def cosign_at(home: Path, size: int, *witnesses: Identity) -> None:
    """Keep cosignatures of the stored checkpoint of this size in a home."""
    with LedgerStore.open(home / DATABASE_NAME) as store:
        text = store.note_at(size)
    heads = HeadStore(home / HEADS_NAME)
    heads.add_note(cosigned(text, *witnesses))
    heads.close()


def record(home: Path, world: World, size: int, *witnesses: Identity) -> None:
    """Two more entries, each under a head of its own: a record that these nodes have cosigned the
    first ``size`` entries, and an account."""
    with LedgerStore.open(home / DATABASE_NAME) as store:
        for envelope in (
            world.witnessed(world.leaves, witnesses, size=size),
            entries.account(key("late"), world.run),
        ):
            store.append(world.add(envelope), world.sign)


def write_tiles(home: Path, folder: Path, note_text: str = "") -> Path:
    """The C2SP files of a home's ledger, partial tiles included."""
    with LedgerStore.open(home / DATABASE_NAME) as store:
        return write_tiles_of(store, folder, note_text)


def write_tiles_of(store: LedgerStore, folder: Path, note_text: str = "") -> Path:
    """The same of an open ledger."""
    text = note_text or store.latest_note
    size = parse_checkpoint(text).size
    for tile in (*tiles.tiles_of(size), *tiles.level_tiles(tiles.ENTRIES, size)):
        path = folder / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.tile(tile))
    for leaf in store.leaves(0, size):
        if isinstance(leaf, Leaf):
            path = folder / path_of(document_of(leaf))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(leaf.document)
    (folder / "checkpoint").write_text(text)
    return folder


@contextmanager
def served(
    folder: Path, asked: list[str] | None = None, *, forbidding: bool = False
) -> Iterator[str]:
    """A web server for a folder; yields its URL. Paths that were asked for end up in ``asked``.

    :param forbidding: it answers 403, not 404, when it does not have something, as some do
    """

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            super().do_GET()

        def send_error(self, code: int, *arguments: Any) -> None:
            super().send_error(403 if forbidding and code == 404 else code, *arguments)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run_command(*arguments: str, cwd: Path | None = None, **environment: str) -> Finished:
    """``artel ledger`` in a process of its own; with the modules that it had loaded at its end."""
    script = (
        "import json, sys; from artel import cli; code = cli.main(['ledger', *sys.argv[1:]]); "
        "sys.stderr.write('\\nmodules ' + json.dumps(sorted(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    errors, _, modules = done.stderr.rpartition("\nmodules ")
    return Finished(done.returncode, done.stdout, errors, set(json.loads(modules or "[]")))


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str
    modules: set[str]

    @property
    def heavy(self) -> set[str]:
        """What a reader of ledgers must never load."""
        return self.modules & {"torch", "hivemind", "numpy", "transformers", "aiohttp"}

"""Appends to a ledger again and again, each time with a fault at another write; see the tests.

Runs with ``fault_shim.c`` loaded. For each fault it forks: the child appends, and acknowledges on a
pipe what ``append`` has returned for; the parent then looks at what is on the disk. One JSON line
for each fault goes to the standard output.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artel.ledger import entries
from artel.ledger.entries import entry_id
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.store.verify import verify_home
from artel.protocol.errors import ArtelError, CheckFailed
from ledger_world import World, key

HELD = 250  # entries before the fault: the second of the appends completes a tile
BATCHES = (3, 9, 1)


class Case:
    """One fault: ``kind`` (see the shim) at the call number ``at``."""

    def __init__(self, world: World, template: Path, home: Path, kind: str, at: int) -> None:
        self.world, self.home, self.kind, self.at = world, home, kind, at
        self.problems: list[str] = []
        self.said: dict[str, Any] = {}
        self.call = ""
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(template, home)
        self.held = _ids(home)

    def run(self, batches: list[list[bytes]]) -> dict[str, Any]:
        status, lines = self._fork(batches)
        acknowledged = [name for line in lines if "ids" in line for name in line["ids"]]
        errors = [line["error"] for line in lines if "error" in line]
        end = next((line for line in lines if "calls" in line), None)
        killed = status == -signal.SIGKILL
        if self.kind in "kK" and self.call and not killed:
            self.problems.append(f"the child was not killed but ended with {status}")
        if not killed and (status or end is None):
            self.problems.append(f"the child ended with {status}: {lines[-1:]}")
        self._check(acknowledged, killed, errors, [entry_id(leaf) for b in batches for leaf in b])
        return {
            "kind": self.kind,
            "at": self.at,
            "call": self.call,
            "acknowledged": len(acknowledged),
            "errors": errors,
            "problems": self.problems,
        }

    def _check(
        self, acknowledged: list[str], killed: bool, errors: list[str], offered: list[str]
    ) -> None:
        before = verify_home(self.home)
        if not before.verified and (killed or not errors):
            self.problems.append(f"before it is opened again: {_failed(before)}")
        try:
            with LedgerStore.open(self.home / DATABASE_NAME) as store:
                held = [entry_id(leaf) for leaf in store.leaves()]
                new = held[len(self.held) :]
                if held[: len(self.held)] != self.held:
                    self.problems.append("what was there before is not there any more")
                if [name for name in new if name in acknowledged] != acknowledged:
                    self.problems.append("acknowledged entries are lost or in another order")
                if new != [name for name in offered if name in new]:
                    self.problems.append("entries are doubled or in another order")
                store.append([_entry(self.world, "after")], self.world.sign)
        except ArtelError as error:
            self.problems.append(f"cannot be opened again: {error}")
        after = verify_home(self.home)
        if not after.verified:
            self.problems.append(f"after it was opened again: {_failed(after)}")

    def _fork(self, batches: list[list[bytes]]) -> tuple[int, list[dict[str, Any]]]:
        acks, ack = os.pipe()
        calls, call = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for line in self._child(batches, call):
                    os.write(ack, json.dumps(line).encode() + b"\n")
                code = 0
            except BaseException:
                os.write(ack, json.dumps({"trace": traceback.format_exc()}).encode() + b"\n")
            finally:
                os._exit(code)
        os.close(ack)
        os.close(call)
        with open(acks, "rb") as said, open(calls, "rb") as faults:
            lines = [json.loads(line) for line in said.read().splitlines(True) if line[-1] == 10]
            self.call = faults.read().decode().strip()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), lines

    def _child(self, batches: list[list[bytes]], log: int) -> Iterator[dict[str, Any]]:
        store = LedgerStore.open(self.home / DATABASE_NAME)
        shim = ctypes.CDLL(None)
        folder = os.fsencode(f"{self.home}/")
        shim.fault_arm(folder, ctypes.c_long(self.at), ord(self.kind), log)
        for batch in batches:
            for _ in range(2):  # whoever gets an error tries once more
                try:
                    store.append(batch, self.world.sign)
                except CheckFailed as error:
                    if "already" not in error.message:
                        raise
                except ArtelError as error:
                    yield {"error": f"{type(error).__name__}: {error}"}
                    continue
                yield {"ids": [entry_id(leaf) for leaf in batch]}
                break
        store.close()
        yield {"calls": shim.fault_count()}


def _ids(home: Path) -> list[str]:
    with LedgerReader.of(home) as store:
        return [entry_id(leaf) for leaf in store.leaves()]


def _failed(result: Any) -> list[str]:
    return [f"{check.name}: {check.detail}" for check in result.checks if not check.ok]


def _entry(world: World, name: str) -> bytes:
    return entries.account(key(f"fault {name}"), world.run).encode()


def main(folder: Path, kinds: str, first: int, step: int) -> None:
    world = World()
    template = folder / "template"
    world.write(template)
    with LedgerStore.open(template / DATABASE_NAME) as store:
        count = HELD - store.size
        store.append([_entry(world, f"before {number}") for number in range(count)], world.sign)
    batches = [
        [_entry(world, f"{number} {at}") for at in range(count)]
        for number, count in enumerate(BATCHES)
    ]
    for kind in kinds:
        at = first
        while True:
            result = Case(world, template, folder / "home", kind, at).run(batches)
            print(json.dumps(result), flush=True)
            if not result["call"]:
                break  # so many calls there are not: the last case ran without a fault
            at += step


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

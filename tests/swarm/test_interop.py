"""Another libp2p implementation reads a run with nothing but docs/protocol.md in hand."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import random
import re
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import annotated_types
import pytest

from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import LedgerStore
from artel.ledger.sync.serving import LedgerService
from artel.protocol import content, messages
from artel.protocol.errors import ArtelError
from artel.protocol.net import delivery, wire
from artel.protocol.net.blobs import BlobStore
from host_world import LOOPBACK, start
from ledger_world import World
from log_world import replay
from places import ROOT, WORLDS

CLIENT = WORLDS / "interop_client.py"
SPEC = ROOT / "docs" / "protocol.md"
ERRORS = ROOT / "docs" / "errors.md"


async def read_run(address: str, run: str, blob: str) -> dict[str, Any]:
    """What the client prints, in a process of its own."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CLIENT),
        address,
        run,
        blob,
        cwd=CLIENT.anchor,  # so that nothing of ours can be imported
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(child.communicate(), 60)
    except TimeoutError:
        child.kill()
        raise
    assert child.returncode == 0, err.decode()[-2000:]
    return dict(json.loads(out))


@pytest.mark.skipif(importlib.util.find_spec("libp2p") is None, reason="py-libp2p is not installed")
async def test_py_libp2p_reads_ledger_and_content_over_noise_and_yamux(tmp_path: Path) -> None:
    world = World()
    path = world.write(tmp_path / "home", rounds=2)
    blobs = BlobStore(tmp_path / "blobs")
    data = random.Random(5).randbytes(2 * content.CHUNK_BYTES + 77)
    blob = blobs.put(data)
    host = await start(tmp_path / "host")
    try:
        heads = HeadStore(tmp_path / "home" / HEADS_NAME)
        with closing(heads), LedgerStore.open(path, run=world.run) as store:
            state = replay(store.leaves())
            ledger = LedgerService(store, heads, world.run, lambda: state)

            async def files(
                peer: str, request: messages.Message, stream: wire.ByteStream
            ) -> messages.Message | None:
                return await delivery.serve_content(blobs, request, stream)

            await host.serve(wire.LEDGER, ledger.answer)
            await host.serve(wire.CONTENT, files)
            (address,) = await host.addresses()
            assert address.startswith(LOOPBACK.removesuffix("0"))
            found = await read_run(address, world.run, blob)
            assert found == {
                "peer": host.peer_id,
                "coordinator": world.coordinator.peer_id,
                "entries": store.size,
                "root": store.root.hex(),
                "root_by_tiles": store.root.hex(),
                "documents": 8,
                "content_sha256": hashlib.sha256(data).hexdigest(),
                "content_bytes": len(data),
                "refusals": [
                    *("refusal", "not_here", "other_run", "not_here", "not_here"),
                    "not_coordinator",
                ],
                "modules": [],
            }
    finally:
        await host.close()


# --- the specification says what the code does ---


def _table() -> dict[str, tuple[int, list[str]]]:
    """Kind to limit and field names, from the tables of the specification."""
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| (.*?) \|", SPEC.read_text(), re.MULTILINE)
    return {
        kind: (int(limit.replace(",", "")), re.findall(r"`(\w+)`:", fields))
        for kind, limit, fields in rows
    }


def test_the_specification_lists_every_message_with_its_limit_and_fields() -> None:
    expected = {
        kind: (schema.LIMIT, list(schema.model_fields)) for kind, schema in wire.SCHEMAS.items()
    }
    assert _table() == expected


@pytest.mark.parametrize("schema", [messages.Report, messages.Validation])
def test_the_specification_lists_the_fields_of_parts(schema: type[messages.Message]) -> None:
    (row,) = re.findall(rf"^`{schema.KIND}` is a map: (.*?)\n\n", SPEC.read_text(), re.M | re.S)
    assert re.findall(r"`(\w+)`:", row) == list(schema.model_fields)


def test_the_specification_names_the_bounds_of_its_types() -> None:
    text = SPEC.read_text()
    assert f"`{wire.CONTROL}`" in text
    assert f"`{wire.CONTENT}`" in text
    assert f"`{wire.LEDGER}`" in text
    assert f"at most {messages.MAX_LIMIT:,} bytes" in text
    for task in get_args(messages.Task):
        assert f"`{task}`" in text
    assert annotated_types.Le(64) in messages.GetChunks.model_fields["count"].metadata
    assert "1 to 64" in text


def test_every_refusal_code_is_documented() -> None:
    root = SPEC.parent.parent
    sources = [
        *root.glob("protocol/**/*.py"),
        *root.glob("ledger/**/*.py"),
        *root.glob("coordinator/*.py"),
    ]
    text = "\n".join(path.read_text() for path in sources)
    used = set(re.findall(r'code="(\w+)"', text)) | {"malformed", "failed"}
    used |= set(re.findall(r'Refuse\("(\w+)"', text))
    documented = set(re.findall(r"^\| `(\w+)` \|", ERRORS.read_text(), re.MULTILINE))
    assert used <= documented, f"undocumented: {sorted(used - documented)}"


def test_every_reason_code_is_documented() -> None:
    from artel.ledger.entries.reasons import IGNORED, REJECTIONS

    documented = set(re.findall(r"^\| `(\w+)` \|", ERRORS.read_text(), re.MULTILINE))
    assert REJECTIONS.keys() | IGNORED.keys() <= documented


def test_every_exit_code_is_documented() -> None:
    text = ERRORS.read_text()
    codes = {error.exit_code for error in ArtelError.__subclasses__()} | {0, 1, 130}
    for code in codes:
        assert f"| {code} |" in text

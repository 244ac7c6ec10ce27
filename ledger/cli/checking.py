"""``artel ledger audit``: is what a log serves what it signed?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli.meant import quote
from artel.ledger.cli.opening import holding
from artel.protocol.commandline import AsJson, RunId, VKeys, progress, show
from artel.protocol.errors import UsageError
from artel.protocol.paths import expanded


def audit(
    target: Annotated[str, Parameter(metavar="TARGET")],
    /,
    *,
    vkey: VKeys = (),
    run: RunId = "",
    origin: str | None = None,
    full: bool = False,
    as_json: AsJson = False,
) -> int:
    """Check that a log serves what it signed: ours, or any other of the C2SP format.

    example: artel ledger audit http://HOST:8080 --vkey VKEY --full

    :param target: an http(s) URL, a folder of tiles, a multiaddr, an invite
    :param run: run id, which vouches for the key of a run's log
    :param origin: origin line, when it is not the name of the log's key
    :param full: read every entry and tile; of a run, replay it all
    """
    from artel.ledger.fold import labels
    from artel.ledger.store.store import DATABASE_NAME
    from artel.ledger.sync.audit import audit_log

    folder = expanded(Path(target))
    if os.path.isfile(folder / DATABASE_NAME):  # also of an invite, too long for a name
        raise UsageError(
            f"{folder} is the home of a node or a coordinator",
            f"check it with: artel ledger verify --home {quote(folder)}",
        )
    with holding(target) as (holder, named):
        shown = progress("entries audited")
        report, found = audit_log(
            holder, vkey, run or named, full=full, origin=origin, progress=shown
        )
    facts = asdict(report) | {"verified": True, "as_of": report.size}
    if found is not None:
        state = found.state
        facts |= {"signatures": found.signatures, "unsigned": found.unsigned, "run": state.run}
        facts |= {"accounts": len(state.accounts), "vested": state.total_vested}
        facts |= {"pending": state.total_pending, "ignored": state.ignored}
        left = labels.unchecked(state.round, report.size, found.final, found.told)
        facts["not_checked"] = [asdict(item) for item in left]
    return show(facts, _report(facts), as_json=as_json)


def _report(facts: dict[str, Any]) -> Iterator[str]:
    from artel.ledger.entries import words as text

    yield f"origin  {text.printable(facts['origin'])}"
    yield f"size    {facts['size']:,}"
    yield f"root    {facts['root'].hex()}"
    signers = ", ".join(map(text.printable, facts["signers"]))
    yield f"ok      the checkpoint is signed by {signers}"
    if facts["cosigners"]:
        yield f"ok      cosigned by {', '.join(map(text.printable, facts['cosigners']))}"
    tiles = text.plural(facts["tiles"], "tile")
    if not facts["full"]:
        yield f"ok      the root is that of {tiles} on the right edge; --full reads every entry"
        return
    entries = text.plural(facts["entries"], "entry", "entries")
    yield f"ok      {entries} ({facts['entry_bytes']:,} bytes) and {tiles} give its root"
    if "run" not in facts:
        return
    yield f"ok      every entry decodes; {facts['signatures']:,} signatures verify"
    if facts["unsigned"]:
        yield f"        {facts['unsigned']:,} entries with a bad signature count for nothing"
    yield (
        f"ok      replayed: {text.plural(facts['accounts'], 'account')}, "
        f"{facts['vested']:,} credit vested, {facts['pending']:,} pending"
    )
    if facts["ignored"]:
        yield f"        entries that count for nothing: {text.counts(facts['ignored'])}"
    yield "\nnot checked:"
    for item in facts["not_checked"]:
        yield f"--      {item['name']}: {item['detail']}"

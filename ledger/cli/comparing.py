"""``artel ledger compare``: do all who hold a log hold the same one?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli.meant import quote
from artel.ledger.cli.opening import DEFAULT_HOME, Home
from artel.protocol.commandline import AsJson, File, RunId, Table, show
from artel.protocol.errors import EXIT_FAILED, EXIT_OK, UsageError
from artel.protocol.paths import expanded
from artel.protocol.terminal import printable

if TYPE_CHECKING:
    from artel.ledger.sync.compare import Comparison

EVIDENCE_FILE = Path("split-view.json")


def compare(
    target: Annotated[str, Parameter(metavar="URL")],
    /,
    *others: Annotated[str, Parameter(metavar="URL")],
    home: Home = DEFAULT_HOME,
    run: RunId = "",
    output: Annotated[File, Parameter(name="-o")] = EVIDENCE_FILE,
    as_json: AsJson = False,
) -> int:
    """Ask several holders for their tree heads: do all see one history?

    Exit code 0: they do, as far as they show it. 1: they show two, or nobody shows the tree that
    would tell; of two histories of one log the evidence is written to a file.

    example: artel ledger compare http://HOST:8080 http://OTHER-NODE:PORT

    :param target: http(s) URLs, multiaddrs, invites, folders of tiles, or homes
    :param others: with only one, the home is the other
    :param run: run id that all of them have to have
    :param output: where evidence of a split view goes, replaced when it exists
    """
    from artel.ledger.sync.compare import compare
    from artel.ledger.sync.export import write_file
    from artel.ledger.sync.offline import write_evidence

    own = expanded(home)
    if not others and not own.exists():
        raise UsageError(
            "name two or more targets, or a --home",
            f"with one, the home is the other, and there is no {own}",
        )
    targets = [target, *(others or [str(own)])]
    found = compare(targets, run)
    finding, heads = found.finding, found.heads
    facts: dict[str, Any] = {
        "consistent": None if finding is not None and not finding.split else finding is None,
        "heads": [
            {
                "target": head.name,
                "origin": head.head.origin,
                "size": head.size,
                "root": head.head.root.hex(),
                "tree": head.tree is not None,
            }
            for head in heads
        ],
    }
    if finding is not None:
        facts |= {"between": [head.name for head in finding.heads], "reason": finding.why}
        facts["evidence"] = str(output) if found.proof is not None else None
        facts["notes"] = [head.head.note for head in finding.heads]
    if found.proof is not None and found.mandate is not None:
        write_file(output, write_evidence(found.proof, found.mandate))
    show(facts, _shown(found, len(targets), output), as_json=as_json)
    return EXIT_OK if finding is None else EXIT_FAILED


def _shown(found: Comparison, holders: int, output: Path) -> Iterator[str | Table]:
    rows = [
        [
            f"{head.size:,}",
            head.head.root.hex(),
            head.name + ("" if head.tree else "  (signed; no tree behind it)"),
        ]
        for head in found.heads
    ]
    yield Table(rows, ["checkpoint", "root", "holder"], right=(0,))
    finding = found.finding
    if finding is None:
        yield f"\nconsistent: {holders} holders show one history"
        return
    one, other = finding.heads
    names = " and ".join(dict.fromkeys(printable(head.name) for head in (one, other)))
    if not finding.split:
        yield f"\nNOT COMPARED: checkpoints {one.size:,} and {other.size:,} of {names}"
        yield "proven      the log has signed both"
        yield f"not proven  that one tree begins with the other, or that it does not: {finding.why}"
        yield "what to do: name more holders, such as other members or mirrors"
        return
    yield f"\nSPLIT VIEW: {names} show two histories of one log"
    if found.proof is None:
        yield f"proven      to you: checkpoints {one.size:,} and {other.size:,} are both signed,"
        yield "            and neither tree begins with the other"
        yield f"not proven  to others: {finding.why}"
        yield "what to do: keep both notes (--json prints them), and name more holders"
        return
    yield f"evidence written to {output}: it proves to anybody who signed both"
    yield "what to do:"
    yield f"  artel ledger verify {quote(output)}      # check it, offline"
    yield f"  artel ledger split-view {quote(output)}  # enter it into the ledger"
    yield "  and tell the others: whoever holds the run's key lies, or somebody has stolen it"

"""The check at the end of ``artel demo``, from the files that it leaves behind and nothing else."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artel.ledger import entries
from artel.ledger.fold.shares import FoldState, shares
from artel.ledger.store import finality
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.verify import verify_home
from artel.protocol import content
from artel.protocol.errors import ArtelError

Facts = dict[str, Any]
"""What came out, as ``--json`` prints it; ``problems`` lists, in words, all that does not hold."""


@dataclass(frozen=True)
class Demo:
    """What to run."""

    folder: Path
    run_file: Path
    nodes: int
    rounds: int
    port: int = 0


def checked(demo: Demo, rows: Sequence[dict[str, Any]], bytes_up: Mapping[str, int]) -> Facts:
    """Check everything that a demo has left behind.

    :param rows: of the coordinator's API, one for each round
    :param bytes_up: node to the bytes that it has sent in the whole run, as its streams counted
    """
    homes = ("coordinator", *(f"node-{number}" for number in range(1, demo.nodes + 1)))
    ledgers = {name: verify_home(demo.folder / name) for name in homes}
    main = ledgers["coordinator"]
    fold, problems = main.state, []
    for name, ledger in ledgers.items():
        broken = [check for check in ledger.checks if not check.ok]
        problems += [f"ledger of {name}: {check.name}: {check.detail}" for check in broken]
    with LedgerReader.of(demo.folder / "coordinator") as log:
        example, unsigned = _signed_by_all(log)
        final, witnesses = 0, 0
        try:
            final, witnesses = _newest_certified(demo, homes, log, fold)
        except ArtelError as error:
            problems.append(f"the witnesses' cosignatures: {error.message}")
        differing = [
            f"{name} holds another ledger than the coordinator"
            for name, ledger in ledgers.items()
            if ledger.size > log.size or log.root_at(ledger.size).hex() != ledger.root
        ]
    differing += unsigned + list(_without_the_state(demo, fold.states[-1] if fold.states else ""))
    owners, losses = shares(fold), [r["validation"] for r in rows if r["validation"] is not None]
    expected = {
        f"{fold.round} of {demo.rounds} rounds were agreed on": fold.round == demo.rounds,
        f"only {final} of {main.size} ledger entries are final": final > fold.rooted_by,
        f"{fold.total_pending} credit is still pending": not fold.total_pending,
        "the shares do not add up to 1": sum(share.share for share in owners) == 1,
        "an account was convicted": not any(owner.barred for owner in fold.accounts.values()),
        "the validation loss has not fallen": len(losses) > 1 and losses[-1] < losses[0],
    }
    problems += [problem for problem, holds in expected.items() if not holds] + differing
    return {
        "problems": problems,
        "rounds": fold.round,
        "nodes": demo.nodes,
        "first_val_loss": losses[0] if losses else None,
        "final_val_loss": losses[-1] if losses else None,
        "state_root": fold.states[-1] if fold.states else "",
        "state_roots_agree": not differing,
        "bytes_up_per_node_per_round": round(
            sum(bytes_up.values()) / max(1, len(bytes_up)) / demo.rounds
        ),
        "ledger": {
            "size": main.size,
            "root": main.root,
            "verified": all(ledger.verified for ledger in ledgers.values()),
            "final": final,
            "witnesses": witnesses,
            "witnesses_wanted": fold.rules.witnesses if fold.rules is not None else 0,
            "example": example,
            "homes": {
                name: {"size": ledger.size, "root": ledger.root, "verified": ledger.verified}
                for name, ledger in ledgers.items()
            },
        },
        "shares": [
            {"account": share.account, "credit": share.credit, "share": share.share}
            for share in owners
        ],
        "tokens": sum(fold.node_tokens.values()),
        "audits": {
            "verdicts": fold.kinds.get(entries.Verdict.KIND, 0),
            "tokens": sum(owner.units.get("audit", 0) for owner in fold.accounts.values()),
        },
        "credit": {"vested": fold.total_vested, "pending": fold.total_pending},
        "seconds_per_round": _mean_phases(rows),
        "loss_curve": [{key: row[key] for key in ("round", "validation", "loss")} for row in rows],
        "out": str(demo.folder),
    }


def _newest_certified(
    demo: Demo, homes: Sequence[str], log: LedgerReader, fold: FoldState
) -> tuple[int, int]:
    """Entries that are final by the newest head that any home holds, and how many accounts say so;
    its signatures are checked again here, and its root."""
    best = (0, 0)
    for path in (demo.folder / name / HEADS_NAME for name in homes):
        if not path.is_file():
            continue
        with contextlib.closing(HeadStore(path)) as heads:
            found = finality.newest_certified(heads, fold)
        if found:
            head, signed = finality.verified(found, log.origin, [fold.term.leader], fold.nodes)
            fits = head.size <= log.size and log.root_at(head.size) == head.root
            if fits and finality.is_certified(signed, fold):
                final = max(fold.final, fold.electors.final_by(head.size))
                best = max(best, (final, len(finality.seats(signed, fold))))
    return best


def _signed_by_all(log: LedgerReader) -> tuple[int, list[str]]:
    """All accepted contributors must have signed each agreed root.

    :returns: index of the newest contribution, an entry worth explaining; and who has not, in words
    """
    example, problems = 0, []
    accepted: set[str] = set()
    for index, entry in enumerate(map(entries.decode, log.leaves())):
        body = entry.body
        if isinstance(body, entries.Contribution):
            example = index
        elif isinstance(body, entries.RoundClosed):
            accepted = {item.node for item in body.accepted}
        elif isinstance(body, entries.StateAgreed) and not accepted <= body.signatures.keys():
            missing = len(accepted - body.signatures.keys())
            problems.append(f"{missing} contributor(s) did not sign state {body.round}")
    return example, problems


def _without_the_state(demo: Demo, final: str) -> Iterator[str]:
    """Each node must hold the last state: its file is hashed again, whatever the node said."""
    for number in range(1, demo.nodes + 1):
        path = demo.folder / f"node-{number}" / "blobs" / final
        if not final or not path.is_file():
            yield f"node {number} does not hold the final state"
        elif content.file_content_id(path) != final:
            yield f"the final state of node {number} is another one"


def _mean_phases(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean seconds of a round in each phase."""
    tally: Counter[str] = Counter()
    done = [row["seconds"] for row in rows if "applying" in row["seconds"]]
    for seconds in done:
        tally.update(seconds)
    means = {name: total / len(done) for name, total in tally.items()}
    if means:
        means["not_training"] = sum(s for name, s in means.items() if name != "training")
    return {name: round(seconds, 3) for name, seconds in means.items()}

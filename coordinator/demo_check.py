"""The check at the end of ``artel demo``, from the files that it leaves behind and nothing else."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artel.ledger import entries
from artel.ledger.fold.shares import FoldState, shares
from artel.ledger.store import finality
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.snapshot import snapshot
from artel.ledger.store.store import LedgerStore
from artel.ledger.store.verify import Verification, verify_home
from artel.protocol import content, merkle
from artel.protocol.errors import ArtelError
from artel.protocol.identity import public_of


@dataclass(frozen=True)
class Demo:
    """What to run."""

    folder: Path
    run_file: Path
    nodes: int
    rounds: int
    port: int = 0


@dataclass(frozen=True)
class Final:
    """How much of the ledger is final by the newest head that the homes hold."""

    size: int = 0
    witnesses: tuple[str, ...] = ()
    """Accounts whose nodes cosigned it."""
    wanted: int = 0


@dataclass
class Result:
    """What came out. ``problems`` lists, in words, everything that does not hold."""

    demo: Demo
    curve: list[dict[str, Any]]
    """Of each round: validation loss of the state that it starts from, mean training loss."""
    state_root: str
    state_roots_agree: bool
    bytes_up: Mapping[str, int]
    """By node: bytes that it has sent in the whole run, as counted at its streams."""
    ledgers: Mapping[str, Verification]
    """By home, the coordinator's first."""
    fold: FoldState
    final: Final
    example: int
    """Index of the newest contribution: an entry worth explaining."""
    phases: Mapping[str, float]
    """Mean seconds of a round in each phase."""
    sample: str
    seconds: float
    problems: list[str] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """Validation losses in order."""
        return [row["validation"] for row in self.curve if row["validation"] is not None]

    @property
    def bytes_up_per_node_per_round(self) -> int:
        per_node = sum(self.bytes_up.values()) / max(1, len(self.bytes_up))
        return round(per_node / self.demo.rounds)

    @property
    def plot(self) -> Path:
        return self.demo.folder / "loss.png"

    def to_json(self) -> dict[str, Any]:
        """The one object that ``--json`` prints."""
        main = next(iter(self.ledgers.values()))
        return {
            "ok": not self.problems,
            "problems": self.problems,
            "rounds": self.fold.round,
            "nodes": self.demo.nodes,
            "first_val_loss": self.losses[0] if self.losses else None,
            "final_val_loss": self.losses[-1] if self.losses else None,
            "state_root": self.state_root,
            "state_roots_agree": self.state_roots_agree,
            "bytes_up_per_node_per_round": self.bytes_up_per_node_per_round,
            "ledger": {
                "size": main.size,
                "root": main.root,
                "verified": all(ledger.verified for ledger in self.ledgers.values()),
                "final": self.final.size,
                "witnesses": len(self.final.witnesses),
                "witnesses_wanted": self.final.wanted,
                "homes": {
                    name: {"size": ledger.size, "root": ledger.root, "verified": ledger.verified}
                    for name, ledger in self.ledgers.items()
                },
            },
            "shares": [
                {"account": share.account, "credit": share.credit, "share": share.share}
                for share in shares(self.fold)
            ],
            "tokens": sum(self.fold.node_tokens.values()),
            "credit": {
                "vested": self.fold.total_vested,
                "pending": self.fold.total_pending,
            },
            "seconds": round(self.seconds, 1),
            "seconds_per_round": {name: round(s, 3) for name, s in self.phases.items()},
            "loss_curve": self.curve,
            "sample": self.sample,
            "plot": str(self.plot),
            "out": str(self.demo.folder),
        }


def checked(demo: Demo, rows: Sequence[dict[str, Any]], bytes_up: Mapping[str, int]) -> Result:
    """Check everything that a demo has left behind, from the files alone."""
    homes = ["coordinator", *(f"node-{number}" for number in range(1, demo.nodes + 1))]
    ledgers = {name: verify_home(demo.folder / name) for name in homes}
    main = ledgers["coordinator"]
    problems = []
    for name, ledger in ledgers.items():
        problems += [
            f"ledger of {name}: {check.name}: {check.detail}"
            for check in ledger.checks
            if not check.ok
        ]
    if main.state.round != demo.rounds:
        problems.append(f"{main.state.round} of {demo.rounds} rounds were agreed on")
    try:
        final = _final(demo, homes, main)
    except ArtelError as error:
        problems.append(f"the witnesses' cosignatures: {error.message}")
        final = Final()
    if final.size < main.size:
        problems.append(f"{final.size} of {main.size} ledger entries are final")
    if main.state.total_pending:
        problems.append(f"{main.state.total_pending} credit is still pending")
    disagreements = [*_ledgers_differ(demo, ledgers), *_states_differ(demo, main.state)]
    result = Result(
        demo,
        curve=[{key: row[key] for key in ("round", "validation", "loss")} for row in rows],
        state_root=main.state.states[-1] if main.state.states else "",
        state_roots_agree=not disagreements,
        bytes_up=bytes_up,
        ledgers=ledgers,
        fold=main.state,
        final=final,
        example=_newest_contribution(demo),
        phases=_mean_phases(rows),
        sample="",
        seconds=0.0,
        problems=problems + disagreements,
    )
    if sum(share.share for share in shares(main.state)) != 1:
        result.problems.append("the shares do not add up to 1")
    losses = result.losses
    if len(losses) < 2 or not losses[-1] < losses[0]:
        result.problems.append("the validation loss has not fallen")
    return result


def _final(demo: Demo, homes: Sequence[str], main: Verification) -> Final:
    """The newest final head in any home; its signatures are checked again here, and its root."""
    state = main.state
    wanted = state.rules.witnesses if state.rules is not None else 0
    best = Final(wanted=wanted)
    with _ledger_of(demo.folder / "coordinator") as store:
        for name in homes:
            path = demo.folder / name / HEADS_NAME
            if not path.is_file():
                continue
            with contextlib.closing(HeadStore(path)) as heads:
                found = finality.newest_final(heads, state)
            if not found:
                continue
            head, signed = finality.verified(found, store.origin, state.coordinators, state.nodes)
            fits = head.size <= store.size and store.root_at(head.size) == head.root
            if fits and finality.is_final(signed, state) and head.size > best.size:
                best = Final(head.size, tuple(finality.seats(signed, state)), wanted)
    return best


def _newest_contribution(demo: Demo) -> int:
    with _ledger_of(demo.folder / "coordinator") as store:
        kinds = [entries.decode(leaf).kind for leaf in store.leaves()]
    return max((i for i, kind in enumerate(kinds) if kind == "contribution"), default=0)


def _ledgers_differ(demo: Demo, ledgers: Mapping[str, Verification]) -> list[str]:
    """Each node's ledger must be the coordinator's, or the beginning of it."""
    problems = []
    with _ledger_of(demo.folder / "coordinator") as store:
        for name, ledger in ledgers.items():
            leaves = store.leaves(0, ledger.size)
            root = merkle.root(merkle.leaf_hash(leaf) for leaf in leaves).hex()
            if ledger.size > store.size or root != ledger.root:
                problems.append(f"{name} holds another ledger than the coordinator")
    return problems


def _states_differ(demo: Demo, fold: FoldState) -> list[str]:
    """All accepted contributors must have signed each agreed root, and each node must hold the last
    one: its file is hashed again here, whatever the node said of it."""
    problems = []
    with _ledger_of(demo.folder / "coordinator") as store:
        accepted: set[str] = set()
        for entry in map(entries.decode, store.leaves()):
            body = entry.body
            if isinstance(body, entries.RoundClosed):
                accepted = {public_of(item.node).hex() for item in body.accepted}
            elif isinstance(body, entries.StateAgreed) and not accepted <= entry.signers:
                missing = len(accepted - entry.signers)
                problems.append(f"{missing} contributor(s) did not sign state {body.round}")
    final = fold.states[-1] if fold.states else ""
    for number in range(1, demo.nodes + 1):
        path = demo.folder / f"node-{number}" / "blobs" / final
        if not final or not path.is_file():
            problems.append(f"node {number} does not hold the final state")
        elif content.file_content_id(path) != final:
            problems.append(f"the final state of node {number} is another one")
    return problems


@contextlib.contextmanager
def _ledger_of(home: Path) -> Iterator[LedgerStore]:
    with snapshot(home) as copied, LedgerStore.open_copy(copied.path) as store:
        yield store


def _mean_phases(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    tally: Counter[str] = Counter()
    done = [row["seconds"] for row in rows if "applying" in row["seconds"]]
    for seconds in done:
        tally.update(seconds)
    means = {name: total / len(done) for name, total in tally.items()}
    if means:
        means["not_training"] = sum(s for name, s in means.items() if name != "training")
    return means

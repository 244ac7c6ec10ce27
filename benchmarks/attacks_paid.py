"""What attackers among the contributors are paid, and when they are found out.

What follows from an attack that audits look for depends on two things. What an auditor finds: the
relative error between what an attacker sends and what it would have sent, measured in rounds of
``benchmarks.attacks`` and judged by the tolerances of a run. And whom the lot names: the fold of
the ledger itself is fed with rounds in which attackers send such work, and draws by salts that
differ from seed to seed. What it grants, holds back and takes away is counted.

Eight nodes, the last ones of which are attackers: *new* ones from the run's first round on, when
everybody is new, or *known* ones, which begin after a hundred honest rounds, anywhere in a span.
They accept each other's work when they are drawn to repeat it; all others say what is so, after as
many rounds as they repeat. Signatures are left out (``ledger_entries.py``).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from artel.coordinator.resuming import seat
from artel.ledger import entries
from artel.ledger.entries import audits
from artel.ledger.entries.kinds.verdict import promised
from artel.ledger.entries.odds import MILLION
from artel.ledger.entries.records import Audit
from artel.ledger.fold.shares import apply
from artel.protocol.content import commitment
from artel.protocol.dsse import Envelope
from artel.protocol.exchange import codec as codecs
from artel.protocol.exchange.pseudogradient import Header
from artel.protocol.identity import peer_id_of
from artel.protocol.round_state import COPIED, NO_NUMBERS
from artel.protocol.seats import seated
from artel.protocol.state import Layout, Vector
from artel.protocol.terms import TOLERANCES
from artel.protocol.tolerances import judged, tolerance_of
from benchmarks.attacks import (
    ATTACKS,
    CLEAN,
    CODECS,
    NODES,
    Cell,
    dense,
    forged,
    rounds_of,
    world,
)
from benchmarks.ledger_entries import STEPS, TOKENS, Run, digest
from benchmarks.options import require_folder, telling

SPAN = 25
"""Rounds of a span, as ``artel run new`` writes it for 20 steps a round."""
KNOWN_AFTER, FOLLOWED, FOLLOWED_LATE = 100, 200, 1000
"""Honest rounds before known attackers begin, and rounds from the beginning of an attack: what
vests does so after some 50."""
LIMIT = 0.01
"""The target: what attackers may have of the credit that vested."""
ROUNDS, MEASURED = 30, (1, 2)
"""Of a run of ``benchmarks.attacks``, and those whose contributions are compared."""
HARDWARE = "x86-64/native/fp32/t1/torch"
COPIES = ("stale", "copier")
"""Attacks that send what another node sent."""
HONEST, FALSE, LATE, ZEROS, COPY = "honest", "false", "late", "zeros", "copies"
"""What a node sends: what it trained; what an auditor rejects, always or in all rounds but a span's
first; nothing; what another one sent."""
NAMES = {
    FALSE: "what is rejected",
    LATE: "the same, but in a span's first round",
    COPY: "copies to the bit",
    ZEROS: "zeros",
}
ATTACKERS = (1, 2, 3)
HELP = """\
rerun, from the root of the repository:
  python -m benchmarks.attacks_paid --quick                  # under a minute
  python -m benchmarks.attacks_paid --json FILE              # a few minutes
"""


# --- what an auditor finds ------------------------------------------------------------------------


def errors_of(codec: str) -> dict[str, float]:
    """Attack to the least relative error between what one of its attackers sent and what it would
    have sent, as payloads decode."""
    attackers, training = 2, world(ROUNDS)
    clean = Cell(CLEAN, 0, "mean", codec, max(MEASURED) + 1, 0)
    config = training.plan.config(clean.row, training.corpus.vocab_size)
    chosen, found = codecs.of(config.exchange), dict.fromkeys(ATTACKS, math.inf)
    before: list[Vector] = []
    for number, round in enumerate(rounds_of(clean, training)):
        honest, own = round.sent[:-attackers], round.sent[-attackers:]
        layout = round.node.layout
        for attack in ATTACKS if number in MEASURED else ():
            cell = dataclasses.replace(clean, attack=attack, attackers=attackers)
            vectors = forged(cell, layout, number, honest, before, own)
            for wanted, vector in zip(own, vectors, strict=True):
                sent = _sent(chosen, layout, vector)
                error = float(np.linalg.norm(sent - wanted) / np.linalg.norm(wanted))
                found[attack] = min(found[attack], error)
        before = honest
    return found


def _sent(codec: codecs.Codec, layout: Layout, vector: Vector) -> Vector:
    """As other nodes decode it."""
    header = Header(0, "00" * 32, codec)
    return dense(header.load(header.wrap(layout, codec.encode(layout, vector)), layout), layout)


def verdict_on(error: float) -> str:
    """What an auditor of the same hardware class says of the first round of a span."""
    return judged(TOLERANCES, HARDWARE, HARDWARE, error, STEPS)


# --- whom the lot names ---------------------------------------------------------------------------


class Watched(Run):
    """A run with audits, round by round, of which the last ``attackers`` nodes are attackers."""

    def __init__(self, attackers: int, nodes: int = NODES) -> None:
        super().__init__(rounds=2 * FOLLOWED_LATE, span=SPAN)
        apply(self._state, entries.decode(self.genesis.encode()))
        publics = [bytes.fromhex(digest(f"node {at}")) for at in range(nodes)]
        self._keys = {peer_id_of(public): public.hex() for public in publics}
        self._nodes = list(self._keys)
        self.attackers = self._nodes[nodes - attackers :]
        for node in self._nodes:
            account = digest(f"account of {node}")
            self._entry(entries.AccountBody, {"account": account, "recovery": ""}, account)
            own = digest(f"coordinator of {node}")
            body = {"node": node, "account": account, "coordinator": own, "seq": 1}
            self._entry(entries.Node, body, account, self._keys[node], own)
        self._since, self._sends = sys.maxsize, HONEST
        self._payload_before = ""
        self.vested = Counter[str]()
        """Account to the credit for rounds of the attack that has vested."""

    def branch(self) -> Watched:
        """The same run, which goes on by itself from here."""
        other = copy.copy(self)
        other._state = self._state.copy()
        return other

    def attacked(self, sends: str, seed: int) -> tuple[list[float], float]:
        """Rounds from the beginning of an attack to each conviction, infinite for none; and the
        attackers' part of the credit for these rounds that has vested and was not lost again."""
        self._since, self._sends, self.vested = self._state.round, sends, Counter()
        found = dict.fromkeys(self.attackers, math.inf)
        for number in range(1, _followed(sends) + 1):
            self.play(seed)
            for node in self.attackers:
                if self._barred(node):
                    found[node] = min(found[node], number)
        theirs = sum(self.vested[self._state.account_of(node)] for node in self.attackers)
        return list(found.values()), theirs / self.vested.total()

    def play(self, seed: int) -> None:
        """One round, and the verdicts that are ready after it."""
        state, number = self._state, self._state.round
        nodes = [node for node in self._nodes if not self._barred(node)]
        if state.rests_on == "members":
            table = {node: seat(state, node, place) for place, node in enumerate(nodes)}
            nodes = seated(nodes, table, len(nodes), {}, len(nodes) // 4, len(nodes))
        members = sorted(nodes)
        at, base = {"round": number, "attempt": 0}, state.states[-1]
        body: dict[str, Any] = {"base": base, "cursor": number, "members": tuple(members)}
        self._say(entries.RoundOpened, at | body | {"steps": (STEPS,) * len(members)})
        salts = {node: digest(f"salt {seed} {number} {node}") for node in members}
        blobs = {node: digest(f"blob {number} {node}") for node in members}
        commitments = {
            node: commitment(self.run, number, 0, node, blobs[node], bytes.fromhex(salts[node]))
            for node in members
        }
        self._say(entries.RoundCommitted, at | {"commitments": commitments})
        accepted, rejected, shown = [], [], dict[str, str]()
        for node in members:
            payload = self._payload(node, blobs[node])
            span = state.work.goes_on(number, state.spans.get(node))
            body = {"node": node, "base": base, "blob": blobs[node], "size": 1000}
            body |= {"salt": salts[node], "tokens": TOKENS, "tail": 0, "head": STEPS}
            body |= {"span": number if span is None else span, "payload": payload}
            body |= {"chain": blobs[node], "hardware": HARDWARE, "up": 4000, "down": 9000}
            entry = self._entry(entries.Contribution, at | body, self._keys[node])
            if self._did.reason:
                assert (self._did.reason, self._sends) == (COPIED, COPY)
                rejected.append(entries.Rejected(node=node, reason=COPIED))
            else:
                accepted.append(entries.Accepted(node=node, entry=entry.id, weight=TOKENS))
                shown[node] = payload
        body = {"accepted": tuple(accepted), "rejected": tuple(rejected)}
        self._say(entries.RoundClosed, at | body)
        assert state.attempt is not None
        body = {"round": number + 1, "root": digest(f"state {number + 1}"), "wrong": ()}
        body |= {"credits": state.attempt.credits.root, "attempt": 0}
        body |= {"rests_on": state.attempt.rests_on, "outside": ""}
        body |= {"signatures": {item.node: "00" * 64 for item in accepted}}
        self._payload_before = next(shown[n] for n in shown if n not in self.attackers)
        self._say(entries.StateAgreed, body)
        self._judge()

    def _payload(self, node: str, blob: str) -> str:
        sends = self._sends if node in self.attackers else HONEST
        if sends == ZEROS:
            return NO_NUMBERS
        return (self._payload_before or blob) if sends == COPY else blob

    def _say(self, schema: type[entries.Body], fields: dict[str, Any]) -> None:
        """An entry of the coordinator's."""
        self._entry(schema, fields, self.coordinator.key)
        assert not self._did.reason, self._did
        for credit in self._did.vested:
            if credit.round >= self._since:
                self.vested[credit.account] += credit.amount
        self._lost()

    def _lost(self) -> None:
        """A conviction takes what vested lately, and so what vested since."""
        for account, amount in self._did.stakes:
            self.vested[account] = max(0, self.vested[account] - amount)

    def _judge(self) -> None:
        """Whoever has had as many rounds as it has to repeat commits, and shows when all have."""
        for source, audit in list(self._state.audits.items()):
            ready = self._state.round - (audit.last - audit.first + 1)
            window = audits.window(self._state, audit.steps)
            for draw in audit.awaited:
                if draw.due - window <= ready and not draw.commitment:
                    body = {"node": draw.node, "contribution": source}
                    left_out = Envelope(entries.ENTRY_TYPE, b"{}", ())  # as its payload is
                    body |= {"hash": promised(left_out)}
                    self._entry(entries.VerdictCommitted, body, self._keys[draw.node])
        for source in list(self._state.audits):
            while (audit := self._state.audits.get(source)) is not None and _all_ready(audit):
                (draw, *_) = audit.awaited
                body = {"node": draw.node, "contribution": source, "salt": digest("salt")}
                body |= {"verdict": self._says(draw.node, audit), "round": audit.last}
                body |= {"error": 0, "overlap": MILLION, "hardware": HARDWARE}
                body |= {"rows": digest("rows"), "differs_round": 0, "differs_step": 0}
                self._entry(entries.Verdict, body, self._keys[draw.node])
                assert not self._did.reason, self._did
                self._lost()

    def _says(self, auditor: str, audit: Audit) -> str:
        theirs = audit.node in self.attackers and audit.last >= self._since
        false = self._sends == FALSE or (self._sends == LATE and audit.last > audit.first)
        knows = auditor not in self.attackers and false
        return audits.REJECT if theirs and knows else audits.ACCEPT

    def _barred(self, node: str) -> bool:
        return self._state.accounts[self._state.account_of(node)].barred


def _followed(sends: str) -> int:
    """Rounds."""
    return FOLLOWED_LATE if sends == LATE else FOLLOWED


def _all_ready(audit: Audit) -> bool:
    """Whether there are auditors to show what they found, and nobody has to commit first."""
    return bool(audit.awaited) and all(draw.commitment for draw in audit.awaited)


def followed(sends: str, attackers: int, known: bool, seeds: Sequence[int]) -> dict[str, Any]:
    """What becomes of attackers that send so, over the lots of these seeds."""
    run = Watched(attackers)
    if known:
        for _ in range(KNOWN_AFTER):
            run.play(0)
    found, shares = list[float](), list[float]()
    for seed in seeds:
        branch = run.branch()
        for _ in range(seed % SPAN if known else 0):
            branch.play(seed)
        detected, share = branch.attacked(sends, seed)
        found += detected
        shares.append(share)
    middle, most = quantile(found, 0.5), quantile(found, 0.95)
    share = statistics.mean(shares)
    return {
        "name": f"{sends}, {attackers} of {NODES}, {'known' if known else 'new'}",
        "ours": share,
        "baseline": LIMIT,
        "ratio": share / LIMIT,
        "unit": f"part of the credit that vested for {_followed(sends)} rounds",
        "baseline_is": "limit",
        "holds": share <= LIMIT,
        "worst": max(shares),
        "sends": sends,
        "attackers": attackers,
        "known": known,
        "seeds": len(seeds),
        "convicted": sum(map(math.isfinite, found)) / len(found),
        "rounds": middle if math.isfinite(middle) else None,
        "rounds_95": most if math.isfinite(most) else None,
        "command": f"python -m benchmarks.attacks_paid --seeds {len(seeds)}",
    }


def quantile(found: Sequence[float], part: float) -> float:
    """The least of them that so many are not above."""
    return sorted(found)[math.ceil(part * len(found)) - 1]


# --- the benchmark --------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    torch.set_num_threads(1)
    told = telling(aside=True)
    errors = {}
    for codec in CODECS:
        errors[codec] = errors_of(codec)
        told(f"errors with {codec}")
    rows = []
    for sends, attackers, known in product((FALSE, LATE, COPY, ZEROS), ATTACKERS, (False, True)):
        if sends == LATE and not known:
            continue  # each round of a new node is a span
        # No lot decides on what is refused at once.
        seeds = range(options.seeds if sends in (FALSE, LATE) else 1)
        rows.append(followed(sends, attackers, known, seeds))
        told(rows[-1]["name"])
    row = tolerance_of(TOLERANCES, HARDWARE, HARDWARE, STEPS)
    assert row is not None
    found = [
        {
            "name": f"relative error of {attack}, {codec}",
            "ours": error,
            "baseline": row.reject,
            "ratio": error / row.reject,
            "unit": "relative error, the least of two attackers in two rounds",
            "baseline_is": "what is rejected",
            "holds": error >= row.reject,
            "command": "python -m benchmarks.attacks_paid",
        }
        for codec in CODECS
        for attack, error in errors[codec].items()
    ]
    if options.json:
        options.json.write_text(json.dumps(found + rows, indent=1) + "\n")
    print(table(errors, rows))
    return 0


def table(errors: dict[str, dict[str, float]], rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown: what auditors find of each attack, and what becomes of who sends so."""
    lines = [f"| attack | {' | '.join(f'error, `{codec}`' for codec in errors)} | what follows |"]
    lines.append("|---" * (len(errors) + 2) + "|")
    for attack in ATTACKS:
        found = [errors[codec][attack] for codec in errors]
        said = " / ".join(dict.fromkeys(map(verdict_on, found)))
        if attack == ZEROS:
            said = "not paid (`empty`)"
        elif attack in COPIES:
            said = f"refused (`copied`); changed by a bit: {said}"
        lines.append(f"| {attack} | {' | '.join(f'{error:.2f}' for error in found)} | {said} |")
    lines += [
        "",
        "| they send | of 8 | they are | convicted after, median | 95 % | vested | most |",
    ]
    lines.append("|---" * 7 + "|")
    for row in rows:
        rounds = [_rounds(row[name]) for name in ("rounds", "rounds_95")]
        shares = [f"{100 * row[name]:.2f} %" for name in ("ours", "worst")]
        who = "known" if row["known"] else "new"
        cells = [NAMES[row["sends"]], row["attackers"], who, *rounds, *shares]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _rounds(number: float | None) -> str:
    return "never" if number is None else f"{number:.0f} rounds"


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks_paid",
        description="What attackers are paid, and when they are convicted.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seeds", type=int, default=SPAN, help=f"lots of each attack (default {SPAN})"
    )
    parser.add_argument("--quick", action="store_true", help="two lots")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args(argv)
    if options.quick:
        options.seeds = 2
    if not 1 <= options.seeds <= 10_000:
        parser.error("--seeds must be from 1 to 10000")
    require_folder(parser, options.json)
    return options


if __name__ == "__main__":
    sys.exit(main())

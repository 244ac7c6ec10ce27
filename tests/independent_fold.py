"""The fold of docs/ledger.md, written from that page alone: nothing of the product is imported.

A rule yields its reasons, each or a false value; the first one ends it. Behind them is its effect.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace as Record
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
RATES = {"compute": 100, "data": 10, "audit": 100, "witness": 100}
SUMS = ("vested", "pending", "invalidated", "sent", "received")
Rule = Iterator[object]


def holds(key: str, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def within(name: str, text: str) -> bool:
    """Whether an amendment can give a setting this value."""
    words = {
        "paused": ("true", "false"),
        "optimizer.schedule": ("cosine", "wsd", "constant"),
    }
    if name in words:
        return text in words[name]
    bounds: dict[str, tuple[float, float]] = {
        "optimizer.lr": (1e-12, 1),
        "optimizer.final_lr_fraction": (0, 1),
        "rounds.total": (1, 1_000_000),
        "rounds.min_nodes": (1, 1024),
        "rounds.max_nodes": (1, 1024),
        "rounds.quorum": (1e-12, 1),
        "rounds.deadline_s": (1, 86_400),
        "rounds.grace_s": (0, 3600),
        "rounds.reveal_s": (1, 3600),
        "rounds.settle_s": (1, 3600),
    }
    whole = name in ("rounds.total", "rounds.min_nodes", "rounds.max_nodes")
    number = r"(0|[1-9][0-9]{0,6})" + ("" if whole else r"(\.[0-9]{1,12})?")
    if name not in bounds or not re.fullmatch(number, text):
        return False
    return bounds[name][0] <= float(text) <= bounds[name][1]


def key_of(peer: str) -> str:
    number = 0
    for character in peer:
        number = number * 58 + ALPHABET.index(character)
    return f"{number:076x}"[12:]


def digest(*parts: bytes | str | int) -> bytes:
    """Texts as UTF-8, numbers as u64."""
    as_bytes = (p.encode() if isinstance(p, str) else p for p in parts)
    return sha256(
        b"".join(p.to_bytes(8, "big") if isinstance(p, int) else p for p in as_bytes)
    ).digest()


def leaves_of(folder: Path) -> Iterator[bytes]:
    """The leaves of a mirror, from its bundles of entries (C2SP tlog-tiles)."""
    files = [path for path in (folder / "tile" / "entries").rglob("*") if path.is_file()]
    bundles = dict[int, Path]()
    for path in sorted(files, key=lambda path: path.stat().st_size):  # the fullest one of each
        name = str(path.relative_to(folder / "tile" / "entries")).partition(".p/")[0]
        bundles[int(name.replace("x", "").replace("/", ""))] = path
    for number in sorted(bundles):
        data = bundles[number].read_bytes()
        while data:
            size = 2 + int.from_bytes(data[:2], "big")
            yield data[2:size]
            data = data[size:]


def documents_of(folder: Path) -> dict[str, bytes]:
    """Hash (hex) to content of the documents of a mirror."""
    return {path.name: path.read_bytes() for path in (folder / "document").iterdir()}


def account(key: str) -> Any:
    sums = dict.fromkeys(("seq", "mark", "open", *SUMS), 0)
    return Record(key=key, recovery="", registered=False, barred=False, **sums)


class Fold:
    """``reasons`` says of each leaf why it was ignored, or "".

    :param documents: what entries name, by hash (hex)
    """

    def __init__(self, leaves: Iterable[bytes], documents: Mapping[str, bytes]) -> None:
        self.documents = documents
        self.run, self.reasons, self.states = "", list[str](), list[str]()
        self.accounts, self.pending = dict[str, Any](), dict[str, Any]()
        self.speaks, self.nodes, self.elected = dict[str, str](), dict[str, str](), dict[str, str]()
        self.node_seq, self.tails, self.due = dict[str, int](), dict[str, int](), dict[int, Any]()
        self.spans, self.right, self.struck = dict[str, int](), Counter[str](), dict[str, int]()
        self.kinds, self.unproven = dict[str, str](), list[str]()
        self.void = dict[int, Counter[str]]()
        self.untold = defaultdict[str, tuple[int, int]](lambda: (0, 0))
        self.right_by = defaultdict[str, list[tuple[int, str]]](list)
        self.first, self.present = dict[str, tuple[str, int]](), list[str]()
        self.audits, self.lighter = dict[str, Any](), set[str]()
        self.convicted, self.recent = set[str](), set[str]()
        self.moves = defaultdict[str, list[tuple[int, str]]](list)
        self.cursor = self.earned_to = self.witnessed_size = self.closed = 0
        self.attempt: Any = None
        self.electors, self.certified = list[Any](), list[tuple[int, int]]()
        self.term, self.worked, self.final, self.leaders = 0, 0, 0, list[str]()
        self.lot, self.lately = "", dict[int, Counter[str]]()
        self.charges, self.heard, self.begun = (
            dict[int, Any](),
            set[tuple[int, str]](),
            Counter[int](),
        )
        self.anchors, self.settled_credit, self.astray = dict[int, Any](), list[Any](), list[int]()
        self.amendments = list[tuple[int, dict[str, str]]]()
        for leaf in leaves:
            self.add(leaf)

    def add(self, leaf: bytes) -> None:
        value = json.loads(leaf)
        payload, kind = b64decode(value["payload"]), value["payloadType"]
        message = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
        found = {item["keyid"]: b64decode(item["sig"]) for item in value["signatures"]}
        manifest = kind == "application/vnd.artel.manifest+json"
        body = {} if manifest else self.whole(json.loads(payload))
        seals = [(key, sig, message) for key, sig in found.items()] + [*self.seals(Record(**body))]
        self.signed = all(holds(*seal) for seal in seals) and len(found)
        self.by, self.index, self.id = set(found), len(self.reasons), sha256(leaf).hexdigest()
        rule = self.genesis(payload) if manifest else self.other(Record(**body))
        self.reasons.append(next(filter(None, rule), ""))

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """With the fields of its document."""
        name = body.get("document")
        if name is None:
            return body
        assert sha256(self.documents[name]).hexdigest() == name
        return body | json.loads(self.documents[name])

    def seals(self, b: Any) -> Iterator[tuple[str, bytes, bytes]]:
        """Key, signature and message of each signature in a document."""
        if vars(b).get("kind") == "state_agreed":
            kind = "application/vnd.artel.state+json"
            said = {
                name: vars(b)[name]
                for name in ("attempt", "credits", "root", "round", "run", "wrong")
            }
            vote = json.dumps(said, separators=(",", ":"))
            message = f"DSSEv1 {len(kind)} {kind} {len(vote)} {vote}".encode()
            for peer, signature in b.signatures.items():
                yield key_of(peer), bytes.fromhex(signature), message
        if vars(b).get("kind") == "diverged":
            kind = "application/vnd.artel.loss+json"
            for item in b.losses:
                both = (item["signature"], b.state, b.root, item["loss"])
                both = (both, (item["better_signature"], b.better, b.better_root, item["better"]))
                for signature, number, root, loss in both:
                    said = {"loss": loss, "root": root, "run": b.run, "state": number}
                    text = json.dumps(said, separators=(",", ":"))
                    message = f"DSSEv1 {len(kind)} {kind} {len(text)} {text}".encode()
                    yield key_of(item["node"]), bytes.fromhex(signature), message
        if vars(b).get("kind") == "witnessed":
            root = b64encode(bytes.fromhex(b.root)).decode()
            head = f"artel/{b.run}/term/{b.term}\n{b.size}\n{root}\n"
            for item in b.cosignatures:
                message = f"cosignature/v1\ntime {item['time']}\n{head}".encode()
                yield key_of(item["node"]), bytes.fromhex(item["signature"]), message
        if vars(b).get("kind") == "handover":
            kind = "application/vnd.artel.seal+json"
            for item in b.seals:
                said = {name: item[name] for name in ("of", "root", "size")} | {"run": b.run}
                said |= {"term": b.term - 1, "next": b.coordinator}
                seal = json.dumps(said, separators=(",", ":"), sort_keys=True)
                message = f"DSSEv1 {len(kind)} {kind} {len(seal)} {seal}".encode()
                yield key_of(item["node"]), bytes.fromhex(item["signature"]), message

    def genesis(self, payload: bytes) -> Rule:
        yield self.index and ("second_genesis" if self.run else "no_genesis")
        manifest = json.loads(payload)
        yield not self.signed and "bad_signature"
        yield self.by != {manifest["organiser"]} and "wrong_signers"
        trust, self.organiser = manifest["config"].get("trust", {}), manifest["organiser"]
        listed = trust.get("admission", "open") == "list"
        self.closed_to = set(trust.get("admitted", ())) if listed else None
        self.run, self.states = sha256(payload).hexdigest(), [manifest["initial_state"]]
        self.anchor(0, {}, [])
        self.coordinators, self.text = manifest["coordinators"], manifest.get("data", {})
        self.leaders = [self.coordinators[0]]
        self.accounts_asked = manifest["config"].get("ledger", {}).get("witnesses", 1)
        self.config = config = manifest["config"]
        self.seq_len, self.h = config["data"]["seq_len"], config["rounds"]["inner_steps"]
        self.owned = {"vesting_rounds": 3, "transfers": False, "arbiter_quorum": 1}
        self.owned |= config.get("ownership", {})
        self.trust = {"standing_rounds": 500, "founders": 4, "audit_rate": 0.05, "audit_rounds": 3}
        self.trust |= {"newcomer_rounds": 3} | config.get("trust", {})
        self.fame, self.every = self.trust["standing_rounds"], config["rounds"].get("span", 0)
        self.rate = round(1_000_000 * self.trust["audit_rate"]) if self.every else 0
        self.rates = RATES | self.owned.get("rates", {})
        self.arbiters = set(self.owned.get("arbiters") or [manifest["organiser"]])
        for part in filter(lambda part: part["account"], self.text.get("contributed") or ()):
            self.accounts[part["account"]] = account(part["account"])
            self.speaks[part["account"]] = part["account"]

    def other(self, b: Any) -> Rule:
        yield not self.run and "no_genesis"
        yield b.run != self.run and "wrong_run"
        yield not self.signed and "bad_signature"
        yield from getattr(self, b.kind)(b)

    @property
    def round(self) -> int:
        return len(self.states) - 1

    @property
    def led(self) -> bool:
        return self.by == {self.leaders[-1]}

    def named(self, name: str) -> Any:
        owner = self.accounts.get(name)
        return owner if owner is not None and owner.registered else None

    def speaking(self, name: str) -> Rule:
        yield not self.named(name) and "unknown_account"
        yield self.by != {self.accounts[name].key} and "wrong_signers"

    def now(self, b: Any, *phases: str) -> Any:
        one = self.attempt
        here = one and (one.round, one.attempt) == (b.round, b.attempt) and one.phase in phases
        return one if here else None

    # --- steps ------------------------------------------------------------------------------------

    def tail(self, round: int, h: int) -> int:
        tau = self.config.get("exchange", {}).get("overlap_steps", 0)
        last = round >= self.total_at(round) - 1 or (self.every and (round + 1) % self.every == 0)
        if not tau or last:
            return 0
        return min(h - 1, max(1, (2 * tau * h + self.h) // (2 * self.h)))

    @property
    def boxed(self) -> bool:
        return bool(self.config["rounds"].get("box_s", 0) > 0)

    @property
    def least(self) -> int:
        return -(-self.h // 4) if self.boxed else self.h

    def settled(self, name: str, round: int, default: object = 0) -> Any:
        """What a setting is in a round, as a text where it was amended."""
        value: Any = self.config
        for part in name.split("."):
            value = value.get(part, {}) if isinstance(value, dict) else {}
        found = [c[name] for at, c in self.amendments if at <= round and name in c]
        return found[-1] if found else default if value == {} else value

    def total_at(self, round: int) -> int:
        return int(self.settled("rounds.total", round))

    @property
    def total(self) -> int:
        return self.total_at(self.round)

    def windows(self, steps: int) -> int:
        return steps * self.config["optimizer"]["batch_size"]

    # --- credit -----------------------------------------------------------------------------------

    def grant(self, kind: str, source: str, name: str, units: int, due: int, **more: Any) -> None:
        fields = {
            "by": "",
            "lapses": 0,
            "ruled": False,
            "right": False,
            "about": source,
            "node": "",
            "round": 0,
        }
        fields |= {"kind": kind, "account": name, "units": units, "due": due} | more
        self.pending[source] = Record(amount=units * self.rates[kind], **fields)
        self.accounts[name].pending += units * self.rates[kind]
        self.due.setdefault(due, []).append(source)

    def work(self, source: str) -> Any:
        item = self.pending.get(source)
        return item if item is not None and item.kind == "compute" else None

    def settle(self, source: str, where: str) -> None:
        item = self.pending.pop(source)
        self.thaw(item)
        owner = vars(self.accounts[item.account])
        owner["pending"] -= item.amount
        owner[where] += item.amount
        if where == "vested" and item.kind in ("compute", "audit") and not owner["barred"]:
            number = max([self.round // -(-self.fame // 16), *self.lately])
            self.lately.setdefault(number, Counter())[item.account] += item.amount
        if where == "vested" and item.kind in ("compute", "audit"):
            self.settled_credit.append(item)

    def forfeit(self, name: str) -> None:
        for number, part in self.lately.items():
            self.void.setdefault(number, Counter())[name] = part[name]

    def standings(self) -> dict[str, int]:
        sums = Counter[str]()
        for number, part in self.lately.items():
            sums += part - self.void.get(number, Counter())
        most = 3 * sorted(sums.values())[(len(sums) - 1) // 2] if sums else 0
        return {name: min(amount, most) for name, amount in sums.items()}

    def weights(self, peers: Iterable[str]) -> dict[str, int]:
        standings, names = self.standings(), {peer: self.nodes[peer] for peer in sorted(peers)}
        many = Counter(names.values())
        return {peer: -(-standings.get(n, 0) // many[n]) for peer, n in names.items()}

    def drawn(self, purpose: str, peers: Iterable[str]) -> Iterator[str]:
        yield from self.by_lot(purpose, self.weights(peers))

    def by_lot(self, purpose: str, weights: dict[str, int]) -> Iterator[str]:
        def number(what: object) -> int:
            return int.from_bytes(digest(f"artel/lot/v1/{self.lot}/{purpose}/{what}"), "big")

        left = [peer for peer in weights if weights[peer]]
        for turn in range(len(left)):
            ends = [*accumulate(weights[peer] for peer in left)]
            yield left.pop(bisect_right(ends, number(turn) % ends[-1]))
        yield from sorted((peer for peer in weights if not weights[peer]), key=number)

    def freeze(self, item: Any, by: str) -> None:
        item.by, first = by, max(item.due, self.round)
        item.lapses = first + max(1, self.owned["vesting_rounds"])
        self.accounts[by].open += 1

    def thaw(self, item: Any) -> None:
        if item.by:
            self.accounts[item.by].open -= 1
        item.by = ""

    def frozen_until(self, source: str) -> int:
        judged = self.pending.get(self.pending[source].about)
        return judged.lapses if judged and judged.by else 0

    def waits(self, item: Any, doubted: Iterable[Any]) -> bool:
        """Whether an audit under way decides about it."""
        audits = [audit for audit in doubted if audit.account == item.account]
        if item.kind == "audit":
            return item.about in self.audits or bool(audits)
        return item.kind == "compute" and any(item.round >= audit.first for audit in audits)

    def proven(self, item: Any) -> bool:
        """Whether two other accounts, or all, have found later work of the node right."""
        if item.kind != "compute" or not self.rate or item.right:
            return True
        later = {name for last, name in self.right_by[item.node] if last >= item.round}
        later -= {item.account}
        others = {self.nodes[peer] for peer in self.present} - {item.account}
        return len(later) >= min(2, len(others))

    def bar(self, name: str) -> None:
        for source, audit in list(self.audits.items()):
            if audit.account == name:
                del self.audits[source]
                continue
            for draw in audit.draws:
                draw.said = draw.said or ("lapsed" if draw.account == name else "")
        owner = self.accounts[name]
        stake = min(owner.vested, sum(part[name] for part in self.lately.values()))
        owner.vested, owner.invalidated = owner.vested - stake, owner.invalidated + stake
        owner.barred = True
        self.forfeit(name)
        for source in [s for s, item in self.pending.items() if item.account == name]:
            self.settle(source, "invalidated")

    def credit_root(self, vesting: Iterable[str] = ()) -> str:
        """As if what is pending from these sources had vested."""
        credit = {name: [each.vested, each.pending] for name, each in self.accounts.items()}
        for item in (self.pending[source] for source in vesting):
            credit[item.account][0] += item.amount
            credit[item.account][1] -= item.amount
        return self.page(sorted(credit), credit, 0)[0].hex()

    def page(
        self, names: list[str], credit: dict[str, list[int]], digits: int
    ) -> tuple[bytes, int, int]:
        """The row of the page of these accounts, which have so many digits in common."""
        if len(names) <= 64:
            rows, kind = [(bytes.fromhex(name), *credit[name]) for name in names], b"\0"
        else:
            places = [int(name, 16) << 2 >> 6 * (42 - digits) & 63 for name in names]
            pairs = list(zip(names, places, strict=True))
            parts = [[name for name, place in pairs if place == at] for at in range(64)]
            rows = [
                self.page(part, credit, digits + 1) if part else (bytes(32), 0, 0) for part in parts
            ]
            kind = b"\1"
        numbers = ((name, v.to_bytes(16, "big"), p.to_bytes(16, "big")) for name, v, p in rows)
        whole = digest(kind, *(part for row in numbers for part in row))
        return whole, sum(v for _, v, _ in rows), sum(p for _, _, p in rows)

    def totals(self) -> dict[str, dict[str, int]]:
        return {
            name: {field: vars(owner)[field] for field in SUMS}
            for name, owner in self.accounts.items()
        }

    def shares(self) -> dict[str, int]:
        credit = {name: owner.vested for name, owner in self.accounts.items() if owner.vested}
        total, scale = sum(credit.values()), 1 << 30
        units = {name: amount * scale // total for name, amount in credit.items()}
        order = sorted(credit, key=lambda name: (-(credit[name] * scale % total), name))
        for name in order[: scale - sum(units.values())]:
            units[name] += 1
        return units

    # --- accounts and nodes -----------------------------------------------------------------------

    def account(self, b: Any) -> Rule:
        yield self.by != {b.account} and "wrong_signers"
        yield self.named(b.account) and "duplicate"
        yield b.account not in self.accounts and b.account in self.speaks and "key_in_use"
        yield not self.admits(b.account) and "not_admitted"
        owner = self.accounts.setdefault(b.account, account(b.account))
        owner.registered, owner.recovery, owner.mark = True, b.recovery, self.index
        self.speaks[b.account] = b.account

    def admits(self, name: str) -> bool:
        return self.closed_to is None or name in self.closed_to

    def admitted(self, b: Any) -> Rule:
        yield self.by != {self.organiser} and "wrong_signers"
        yield self.closed_to is None and "not_allowed"
        yield self.admits(b.key) and "duplicate"
        assert self.closed_to is not None
        self.closed_to.add(b.key)

    def amended(self, b: Any) -> Rule:
        yield self.by != {self.organiser} and "wrong_signers"
        yield b.number != len(self.amendments) + 1 and "wrong_sequence"
        first, total = self.round + (self.attempt is not None), self.total_at(b.round)
        yield (self.closed or not first <= b.round <= total) and "out_of_order"
        yield not all(within(*each) for each in b.changes.items()) and "not_amendable"
        yield int(b.changes.get("rounds.total", b.round)) < b.round and "not_amendable"
        yield b.number > 1024 and "not_amendable"
        before, cap = self.amendments, self.config["rounds"].get("max_nodes", 1024)
        self.amendments = [*before, (b.round, b.changes)]
        for at in {at for at, _ in self.amendments if at >= b.round}:
            least = int(self.settled("rounds.min_nodes", at, 1))
            if not least <= int(self.settled("rounds.max_nodes", at, 1024)) <= cap:
                self.amendments = before
                yield "not_amendable"
        self.astray = []

    def key_rotated(self, b: Any) -> Rule:
        owner, others = self.named(b.account), [*self.by - {b.key}]
        yield owner is None and "unknown_account"
        yield (b.key not in self.by or len(others) != 1) and "wrong_signers"
        kept = not owner.recovery or b.recovery in ("", owner.recovery)
        recovering = sha256(bytes.fromhex(others[0])).hexdigest() == owner.recovery
        yield not (kept if others[0] == owner.key else recovering) and "wrong_signers"
        yield b.seq != owner.seq + 1 and "wrong_sequence"
        yield (b.key in self.speaks or b.key in self.accounts) and "key_in_use"
        del self.speaks[owner.key]
        self.speaks[b.key], owner.key, owner.seq = b.account, b.key, b.seq
        owner.recovery = b.recovery or owner.recovery

    def node(self, b: Any) -> Rule:
        owner = self.named(b.account)
        yield owner is None and "unknown_account"
        wrong = self.by != {owner.key, key_of(b.node), b.coordinator}
        wrong |= self.elected.get(b.node, b.coordinator) != b.coordinator
        yield (wrong or b.coordinator in self.coordinators) and "wrong_signers"
        yield b.seq <= self.node_seq.get(b.node, 0) and "wrong_sequence"
        yield self.nodes.get(b.node) == b.account and "duplicate"
        yield list(self.nodes.values()).count(b.account) >= 64 and "too_many_nodes"
        before = self.nodes.get(b.node)
        self.nodes[b.node], self.node_seq[b.node] = b.account, b.seq
        self.elected[b.node] = b.coordinator
        if not before:
            return
        self.moves[b.node].append((self.index, before))
        for source, item in list(self.pending.items()):
            if (item.account, item.node) == (before, b.node) and not self.proven(item):
                self.settle(source, "invalidated")
        self.right_by.pop(b.node, None)
        self.right.pop(b.node, None)
        self.spans = {peer: first for peer, first in self.spans.items() if peer != b.node}

    # --- rounds -----------------------------------------------------------------------------------

    def round_opened(self, b: Any) -> Rule:
        yield not self.led and "wrong_signers"
        yield b.round != self.round and "out_of_order"
        yield (b.round >= self.total or b.cursor < self.cursor) and "out_of_order"
        again = self.attempt and self.attempt.round == b.round
        yield again and b.attempt <= self.attempt.attempt and "out_of_order"
        yield b.attempt < self.begun[b.round] and "out_of_order"
        yield self.settled("paused", self.round) == "true" and "run_paused"
        yield any(charge.proven for charge in self.charges.values()) and "proven_wrong"
        yield len(self.astray) > 3 and "too_many_setbacks"
        yield b.base != self.states[-1] and "wrong_state"
        yield not self.nodes.keys() >= set(b.members) and "unknown_node"
        most = 4 * self.h if self.boxed else self.h
        pairs = zip(b.members, b.steps, strict=True)
        few = {
            peer: -(-self.least // 4) if peer in self.lighter else self.least for peer in b.members
        }
        yield not all(few[peer] <= steps <= most for peer, steps in pairs) and "wrong_steps"
        names = [self.nodes[peer] for peer in b.members]
        standings = self.standings()
        new = [name for name in names if name not in standings]
        many = len(new) > max(1, (len(names) - len(new)) // 3) or len(new) > len(set(new))
        needed = len(names) <= int(self.settled("rounds.min_nodes", self.round, 1))
        founded = len(standings) >= self.config.get("trust", {}).get("founders", 4)
        yield many and founded and not needed and "too_many_newcomers"
        parts = {
            n: -(-points * len(names) // sum(standings.values())) for n, points in standings.items()
        }
        greedy = any(names.count(name) > parts[name] for name in names if name in parts)
        yield greedy and founded and not needed and "too_many_seats"
        self.attempt = Record(round=b.round, attempt=b.attempt, phase="training", commitments={})
        self.attempt.accounts = {peer: self.nodes[peer] for peer in b.members}
        self.attempt.steps = dict(zip(b.members, b.steps, strict=True))
        self.attempt.shown, self.attempt.slices, self.attempt.accused = {}, {}, {}
        self.attempt.accepted, self.cursor = [], b.cursor
        for number, charge in [*self.charges.items()]:
            charge.age += 1
            if charge.age >= 4 * self.trust["audit_rounds"] and not charge.proven:
                del self.charges[number]

    def round_committed(self, b: Any) -> Rule:
        now = self.now(b, "training")
        yield not self.led and "wrong_signers"
        yield now is None and "out_of_order"
        yield not now.accounts.keys() >= b.commitments.keys() and "not_member"
        now.commitments, now.phase = b.commitments, "revealing"

    def contribution(self, b: Any) -> Rule:
        now = self.now(b, "revealing")
        yield self.by != {key_of(b.node)} and "wrong_signers"
        yield now is None and "out_of_order"
        yield b.node not in now.accounts and "not_member"
        yield b.node not in now.commitments and "not_committed"
        yield b.node in now.shown and "duplicate"
        yield b.base != self.states[-1] and "wrong_state"
        head = now.steps[b.node] - self.tail(b.round, now.steps[b.node])
        yield not max(1, -(-head // 4)) <= b.head <= head and "wrong_tokens"
        tokens = self.windows(b.tail + b.head) * self.seq_len
        yield (b.tail > self.tails.get(b.node, 0) or b.tokens != tokens) and "wrong_tokens"
        yield not self.spans_fit(b) and "wrong_span"
        ends = (bytes.fromhex(text) for text in (key_of(b.node), b.blob, b.salt))
        run = bytes.fromhex(self.run)
        made = digest("artel/commitment/v1\0", run, b.round, b.attempt, *ends).hex()
        yield made != now.commitments[b.node] and "commitment_mismatch"
        known, mine = b.payload[:16], (b.node, b.round)
        empty = b.payload == "0" * 64
        yield not empty and self.first.get(known, mine) != mine and "copied"
        if not empty:
            self.first.setdefault(known, mine)
        for oldest in [*self.first][:-4096]:
            del self.first[oldest]
        now.shown[b.node] = Record(entry=self.id, tokens=b.tokens, head=b.head, salt=b.salt)
        now.shown[b.node].span, now.shown[b.node].empty = b.span, empty
        now.shown[b.node].hardware = b.hardware

    def spans_fit(self, b: Any) -> bool:
        """Whether the contribution begins a span, or goes on with the one of its node."""
        if b.span == b.round or not self.every:
            return b.tail == 0 if self.every else b.span == 0
        goes_on = b.round % self.every > 0 and self.spans.get(b.node) == b.span
        goes_on = goes_on and self.kinds.get(b.node) == b.hardware
        return goes_on and b.tail == self.tails.get(b.node, 0)

    def round_closed(self, b: Any) -> Rule:
        phases = ("revealing",) if b.accepted else ("training", "revealing", "applying")
        now, accepted = self.now(b, *phases), [item["node"] for item in b.accepted]
        yield not self.led and "wrong_signers"
        yield now is None and "out_of_order"
        rejected = {item["node"] for item in b.rejected}
        yield not rejected <= now.accounts.keys() - set(accepted) and "not_member"
        for item in b.accepted:
            shown = now.shown.get(item["node"])
            yield (not shown or shown.entry != item["entry"]) and "unknown_contribution"
            yield item["weight"] != shown.tokens and "wrong_tokens"
        now.accepted, now.phase = accepted, "applying" if accepted else "failed"
        many = len(self.standings())
        now.weights, now.rests_on = self.weights(accepted), "coordinator"
        if many >= self.config.get("trust", {}).get("founders", 4):
            now.rests_on = "members"
        now.credits = self.credit_root()

    def aggregate(self, b: Any) -> Rule:
        now = self.now(b, "applying")
        yield self.by != {key_of(b.node)} and "wrong_signers"
        yield now is None and "out_of_order"
        topology = self.config.get("exchange", {}).get("topology", "auto")
        sharded = topology == "sharded" or (topology == "auto" and len(now.accounts) > 8)
        yield not sharded and "not_sharded"
        yield not b.slice < b.slices <= len(now.accounts) and "unknown_slice"
        maker = now.accepted[(b.slice + b.round) % len(now.accepted)]
        yield b.node != maker and "not_aggregator"
        yield b.slice in now.slices and "duplicate"
        now.slices[b.slice] = b

    def slice_wrong(self, b: Any) -> Rule:
        now = self.now(b, "applying")
        yield self.by != {key_of(b.node)} and "wrong_signers"
        yield now is None and "out_of_order"
        yield b.node not in now.accepted and "not_member"
        yield b.slice not in now.slices and "unknown_slice"
        yield b.node == now.slices[b.slice].node and "own_work"
        checker = now.accepted[(b.slice + b.round + 1) % len(now.accepted)]
        yield b.node != checker and "not_checker"
        yield b.blob == now.slices[b.slice].blob and "same_blob"
        yield b.slice in now.accused and "duplicate"
        now.accused[b.slice] = b.node

    def state_agreed(self, b: Any) -> Rule:
        now = self.attempt
        yield not (self.led and self.nodes.keys() >= b.signatures.keys()) and "wrong_signers"
        place = now and (now.phase, now.round + 1, now.attempt)
        fits = place == ("applying", b.round, b.attempt)
        yield not fits and "out_of_order"
        agreeing = [peer for peer in now.accepted if peer in b.signatures]
        yield (b.rests_on, now.rests_on) == ("members", "coordinator") and "wrong_grounds"
        if b.outside:
            name = self.nodes.get(b.outside, "")
            inside = b.outside in now.accepted or name in {now.accounts[p] for p in now.accepted}
            fit = b.outside in b.signatures and not inside and self.standings().get(name, 0)
            yield not fit and "wrong_grounds"
        heavy = now.weights if any(now.weights.values()) else dict.fromkeys(now.accepted, 1)
        yield 2 * sum(map(heavy.get, agreeing)) <= sum(heavy.values()) and "no_majority"
        yield not now.accused.keys() >= set(b.wrong) and "unknown_slice"
        yield b.credits != now.credits and "wrong_credits"
        for peer in now.accepted:
            shown = now.shown[peer]
            if not shown.empty and self.kinds.get(peer, shown.hardware) != shown.hardware:
                self.right.pop(peer, None)
        due, denied = b.round + self.owned["vesting_rounds"], {now.slices[n].node for n in b.wrong}
        self.recent, paid = set(), set[str]()
        for peer in now.accepted:
            name, shown = now.accounts[peer], now.shown[peer]
            known, more = not self.new(peer), {"node": peer}
            unchecked = self.rate and not known and shown.span != now.round
            unchecked = unchecked or (self.rate and self.untold[peer][1] > now.round)
            if peer in denied or shown.empty or self.accounts[name].barred or unchecked:
                continue
            end = now.round + self.every - now.round % self.every if self.every else 0
            after = max(due, min(end, self.total) if self.rate and known else 0)
            more |= {"round": now.round}
            self.grant("compute", shown.entry, name, shown.tokens, after, **more)
            self.recent.add(name)
            paid.add(peer)
        salts, standings = list[str](), self.standings()
        for peer, shown in now.shown.items():
            name = now.accounts[peer]
            lowest = min(other for other in now.accounts if now.accounts[other] == name)
            counts = peer == lowest and peer in paid and name in standings
            if not shown.empty if now.rests_on == "coordinator" else counts:
                salts.append(shown.salt)
        self.lot = digest("".join(sorted(salts) or [self.lot])).hex()
        for name, units in sorted(self.text_read(now).items()):
            if not self.accounts[name].barred:
                self.grant("data", f"data/{now.round}/{name}", name, units, due, round=now.round)
        self.states.append(b.root)
        self.worked = self.term
        self.tails = {peer: self.tail(now.round, h) for peer, h in now.steps.items()}
        moved = [peer for peer in now.accepted if not now.shown[peer].empty]
        self.kinds |= {peer: now.shown[peer].hardware for peer in moved}
        known = [peer for peer in now.accepted if not self.new(peer)]
        before, going_on = self.spans, known if self.rate else now.accepted
        inside = self.every and self.round % self.every
        going_on = [peer for peer in going_on if self.nodes[peer] == now.accounts[peer]]
        self.spans = {peer: now.shown[peer].span for peer in going_on if inside}
        self.attempt, self.present = None, moved
        part = -(-self.fame // 16)
        for old in [n for n in self.lately if n <= self.round // part + -self.fame // part]:
            del self.lately[old]
        if self.rate:
            self.begin_audits(now, before)
        for source in self.due.pop(self.round, []):
            if source in self.pending:
                wait = self.waits(self.pending[source], self.audits.values())
                until = max(self.frozen_until(source), self.round + wait)
                if until > self.round:
                    self.due.setdefault(until, []).append(source)
                elif not self.proven(self.pending[source]):
                    self.unproven.append(source)
                else:
                    self.settle(source, "vested")
        made = [peer for peer in now.accepted if not now.shown[peer].empty]
        self.anchor(now.attempt, {peer: self.nodes[peer] for peer in b.signatures}, made)
        self.choose(now.accepted)

    def choose(self, accepted: Iterable[str]) -> None:
        """Electors, if it is time for others."""
        standings = self.standings()
        by_standing = len(standings) >= self.trust["founders"]
        if by_standing:
            weights = self.weights(peer for peer, name in self.nodes.items() if name in standings)
        else:
            names = {self.nodes[p]: p for p in sorted(accepted, reverse=True)}
            weights = {p: 1 for name, p in names.items() if not self.accounts[name].barred}
        heaviest = sorted((p for p in weights if weights[p]), key=lambda p: (-weights[p], p))
        chosen = {peer: weights[peer] for peer in heaviest[:48]}
        length = -(-self.fame // 16)
        stretch, until = self.round // length, -(-self.round // length)
        new = Record(since=self.index, stretch=until, weights=chosen, by_standing=by_standing)
        if not chosen:
            return
        if not self.electors:
            new.stretch, self.electors = stretch, [new]
            return
        *former, last = self.electors
        few = not by_standing and not last.by_standing and len(last.weights) < 3
        asked = {peer for one in former for peer in one.weights}
        grows = few and asked <= set(last.weights) < set(chosen)
        flips = last.by_standing != by_standing and not former
        if last.stretch >= stretch and not grows and not flips:
            return
        if (last.weights, last.by_standing) == (chosen, by_standing):
            last.stretch = stretch
            self.electors = [*(one for one in former if stretch - one.stretch < 3), last]
            return
        if grows and len(chosen) < 3:
            new.stretch = stretch
        last.stretch = new.stretch - 1
        self.electors = [last, new]

    def counts(self, peer: str) -> bool:
        """Whether anybody takes a node's word."""
        keys = {key_of(peer), self.elected.get(peer, "")}
        known = peer in self.nodes and not keys & self.convicted
        return known and not self.accounts[self.nodes[peer]].barred

    def quorum(self, peers: Iterable[str], sets: list[Any]) -> bool:
        there = {p for p in peers if self.counts(p)}
        for one in sets:
            part, whole = sum(one.weights.get(p, 0) for p in there), sum(one.weights.values())
            if 3 * part <= 2 * whole if one.by_standing else 2 * part <= whole:
                return False
        return True

    def handover(self, b: Any) -> Rule:
        of, known = max((item["of"], item["size"]) for item in b.seals)
        yield (not of <= self.term < b.term or known > self.index) and "out_of_order"
        named, weights = self.coordinators, self.electors[-1].weights if self.electors else {}
        order = sorted(filter(self.counts, weights), key=lambda p: (-weights[p], p))
        turn = (b.term - self.worked - 1) % (len(named) + len(order)) - len(named)
        chosen = named[b.term % len(named)] if turn < 0 else self.elected[order[turn]]
        wrong = chosen != b.coordinator or self.by != {chosen}
        yield (wrong or chosen in self.convicted) and "wrong_signers"
        sealed = self.quorum((item["node"] for item in b.seals), self.electors)
        yield not (self.electors and sealed) and "not_sealed"
        self.term = b.term
        self.leaders.append(b.coordinator)

    def anchor(self, attempt: int, signers: dict[str, str], made: list[str]) -> None:
        kept = ("cursor", "tails", "spans", "recent", "earned_to", "present")
        anchor = Record(attempt=attempt, signers=set(signers.values()), made=made)
        anchor.kept = {name: vars(self)[name] for name in kept}
        self.anchors[self.round] = anchor
        self.anchors.pop(self.round - 32, None)
        self.charges = {n: charge for n, charge in self.charges.items() if n > min(self.anchors)}

    def state_wrong(self, b: Any) -> Rule:
        yield self.by != {key_of(b.node)} and "wrong_signers"
        yield b.node not in self.nodes and "unknown_node"
        yield (self.closed or not min(self.anchors) < b.state <= self.round) and "out_of_order"
        made = (self.anchors[b.state].attempt, self.states[b.state])
        yield (b.attempt, b.recorded) != made and "wrong_state"
        yield b.root == b.recorded and "same_root"
        name = self.nodes[b.node]
        owner = self.accounts[name]
        called = {(b.state, name), (b.state, b.node)} & self.heard
        yield owner.barred and "barred"
        yield (b.state in self.charges or called) and "duplicate"
        yield owner.vested + owner.pending == 0 and "no_credit"
        standings = self.standings()
        founded = len(standings) >= self.trust["founders"]
        waits = any(charge.account == name for charge in self.charges.values())
        yield (waits or self.round < vars(owner).get("silent", 0)) and "too_many"
        yield founded and name not in standings and "no_standing"
        weights = {
            n: standings.get(n, 0)
            for n, one in sorted(self.accounts.items())
            if n != name and one.registered and not one.barred and one.vested + one.pending
            if vars(one).get("silent", 0) <= self.round and (n in standings or not founded)
        }
        jury = [*self.by_lot(f"state/{b.state}/{b.recorded}", weights)]
        yield len(jury) < 2 and "no_jury"
        charge = Record(entry=self.id, node=b.node, account=name, jury=jury[:10], said={}, age=0)
        charge.answered = set()
        charge.proven, charge.better = False, None
        self.charges[b.state] = charge
        self.heard |= {(b.state, name), (b.state, b.node)}

    def jury_answer(self, b: Any) -> Rule:
        yield self.by != {key_of(b.node)} and "wrong_signers"
        number, charge = self.charged(b)
        yield (charge is None or charge.proven) and "not_accused"
        name = self.nodes.get(b.node, "")
        asked = charge.jury[: 7 + charge.age // self.trust["audit_rounds"]]
        yield name not in asked and "not_drawn"
        yield (name in charge.said or b.node in charge.answered) and "duplicate"
        yield self.accounts[name].barred and "barred"
        charge.said[name] = b.root
        charge.answered.add(b.node)
        if [*charge.said.values()].count(b.root) <= min(7, len(charge.jury)) // 2:
            return
        charge.proven = b.root != self.states[number] and b.root
        if not charge.proven:
            self.settle_charge(number, b.root)

    def settle_charge(self, number: int, right: str) -> None:
        charge = self.charges.pop(number)
        false = {name for name, root in charge.said.items() if root != right}
        for name in false | ({charge.account} if right == self.states[number] else set()):
            self.forfeit(name)
            self.accounts[name].silent = self.round + self.fame

    def diverged(self, b: Any) -> Rule:
        yield not self.led and "wrong_signers"
        fits = b.state in (self.round, self.round - 1) and b.better in self.anchors
        yield (self.closed or not fits or b.better >= b.state) and "out_of_order"
        yield any(number > b.better for number in self.charges) and "out_of_order"
        roots = [self.states[b.state], self.states[b.better]]
        yield [b.root, b.better_root] != roots and "wrong_state"
        yield b.root == b.better_root and "same_root"
        made = self.anchors[b.state].made
        heavy = self.weights(made)
        heavy = heavy if any(heavy.values()) else dict.fromkeys(made, 1)
        worse = [t["node"] for t in b.losses if 4 * t["loss"] > 5 * t["better"]]
        yield 2 * sum(heavy.get(n, 0) for n in worse) <= sum(heavy.values()) and "no_majority"
        charge = Record(entry=self.id, account="", jury=[], said={}, age=0, answered=set())
        charge.proven, charge.better = b.better_root, b.better
        self.charges[b.state] = charge
        known = bool(self.astray) and b.state - self.astray[-1] <= 32
        self.astray = [*self.astray, b.state] if known else [b.state]

    def state_upheld(self, b: Any) -> Rule:
        yield not self.led and "wrong_signers"
        number, charge = self.charged(b)
        yield not (charge and charge.proven and charge.better is None) and "not_proven"
        yield b.root != self.states[number] and "wrong_state"
        self.settle_charge(number, b.root)

    def charged(self, b: Any) -> tuple[int, Any]:
        found = ((n, charge) for n, charge in self.charges.items() if charge.entry == b.charge)
        return next(found, (-1, None))

    def rolled_back(self, b: Any) -> Rule:
        yield not self.led and "wrong_signers"
        wrong, charge = self.charged(b)
        yield not (charge and charge.proven) and "not_proven"
        first = min(n for n, each in self.charges.items() if each.proven)
        blamed = charge.better is None
        fits = not self.closed and b.state in self.anchors and b.state < first
        yield not (fits and (blamed or b.state <= charge.better)) and "out_of_order"
        yield b.root != self.states[b.state] and "wrong_state"
        after = deepcopy(self)
        after.go_back(b.state, wrong)
        yield b.credits != after.credit_root() and "wrong_credits"
        self.go_back(b.state, wrong)

    def go_back(self, number: int, wrong: int) -> None:
        paid = max(number, min(self.round, self.round - self.owned["vesting_rounds"]))
        earned_to, signers = self.anchors[paid].kept["earned_to"], self.anchors[wrong].signers
        cursor = self.anchors[number].kept["cursor"]
        if self.charges[wrong].better is not None:
            signers, cursor = set(), self.cursor
        self.settle_charge(wrong, self.charges[wrong].proven)
        for source, item in [*self.pending.items()]:
            if item.kind != "witness" and item.round >= number:
                self.settle(source, "invalidated")
        for item in sorted(self.settled_credit, key=lambda item: item.round)[::-1]:
            owner = self.accounts[item.account]
            if item.account in signers and item.round >= wrong - 1 and owner.vested >= item.amount:
                owner.vested, owner.invalidated = (
                    owner.vested - item.amount,
                    owner.invalidated + item.amount,
                )
        for name in signers:
            self.forfeit(name)
        self.settled_credit = [item for item in self.settled_credit if item.round < number]
        self.audits = {source: one for source, one in self.audits.items() if one.last < number}
        for made in range(number + 1, self.round + 1):
            self.begun[made - 1] = max(self.begun[made - 1], self.anchors.pop(made).attempt + 1)
        if self.attempt and self.attempt.round == self.round:
            self.begun[self.round] = max(self.begun[self.round], self.attempt.attempt + 1)
        self.amendments = [
            (min(at, number) if at < self.round + 2 else at, said) for at, said in self.amendments
        ]
        del self.states[number + 1 :]
        self.worked = self.term
        vars(self).update(self.anchors[number].kept, attempt=None, earned_to=earned_to)
        self.cursor = cursor
        self.charges = {n: charge for n, charge in self.charges.items() if n <= number}
        self.heard = {(n, name) for n, name in self.heard if n <= number}
        for node, found in self.right_by.items():
            self.right_by[node] = [(last, name) for last, name in found if last < number]
        self.due = {n: [s for s in some if s in self.pending] for n, some in self.due.items()}

    def run_closed(self, b: Any) -> Rule:
        yield not self.led and "wrong_signers"
        over = b.round == self.round >= self.total
        yield not over and "out_of_order"
        yield b.closing <= self.closed and "duplicate"
        yield b.closing != self.closed + 1 and "out_of_order"
        doubted = [a for a in self.audits.values() if "reject" in [d.said for d in a.draws]]
        free = [
            source
            for source, item in self.pending.items()
            if b.closing == 2 or not (self.frozen_until(source) or self.waits(item, doubted))
        ]
        yield b.credits != self.credit_root(free) and "wrong_credits"
        self.closed, self.worked = b.closing, self.term
        kept = [] if b.closing == 2 else doubted
        self.audits = {source: a for source, a in self.audits.items() if a in kept}
        for source in free:
            self.settle(source, "vested")

    def text_read(self, now: Any) -> Counter[str]:
        parts, data, used = self.text.get("contributed"), self.config["data"], Counter[str]()
        if not parts:
            return used
        shard, span = data["shard_tokens"], data["span_windows"]
        full, rest = divmod(self.text["train"]["tokens"], shard)
        each, last = (max(0, t - 1) // self.seq_len // span for t in (shard, rest or shard))
        spans = (full - (not rest)) * each + last
        count, total = self.windows(sum(now.steps.values())), spans * span
        if count > total:
            return used
        start = self.cursor
        if start % total + count > total:
            start += total - start % total
        if start < self.earned_to or start + count > total:
            return used
        self.earned_to, ends = start + count, [*accumulate(part["tokens"] for part in parts)]
        for peer, h in sorted(now.steps.items()):
            head = h - self.tail(now.round, h)
            for i in range(self.windows(h)):
                if peer not in now.accepted or now.shown[peer].head <= i % h < head:
                    continue
                slot, window = divmod(start + i, span)
                where, local = divmod(self.permuted(slot, spans), each or 1)
                token = where * shard + (local * span + window) * self.seq_len
                name = parts[bisect_right(ends, token)]["account"]
                used.update({name: self.seq_len} if name else {})
            start += self.windows(h)
        return used

    def permuted(self, x: int, size: int) -> int:
        key = digest("artel/epoch/v1\0", self.config["run"]["seed"], 0)
        half = max(1, ((size - 1).bit_length() + 1) // 2)
        while True:
            left, right = x >> half, x % (1 << half)
            for number in range(8):
                drawn = int.from_bytes(digest(key, bytes([number]), right)[:8], "big")
                left, right = right, left ^ drawn % (1 << half)
            x = left << half | right
            if x < size:
                return x

    # --- doubt ------------------------------------------------------------------------------------

    def dispute(self, b: Any) -> Rule:
        yield from self.speaking(b.account)
        item, owner = self.work(b.contribution), self.accounts[b.account]
        yield item is None and "not_pending"
        yield item.account == b.account and "own_work"
        yield (item.by or item.ruled) and "duplicate"
        yield owner.barred and "barred"
        yield owner.vested + owner.pending == 0 and "no_credit"
        yield owner.open >= 8 and "too_many"
        self.freeze(item, b.account)

    def ruling(self, b: Any) -> Rule:
        item, dismissed = self.work(b.contribution), b.decision == "dismissed"
        yield not self.by <= self.arbiters and "wrong_signers"
        yield len(self.by) < self.owned["arbiter_quorum"] and "no_quorum"
        yield item is None and "not_pending"
        yield item.ruled and dismissed and "duplicate"
        if dismissed:
            item.ruled = True
            self.thaw(item)
            held = not self.proven(item) or self.waits(item, self.audits.values())
            if (self.round >= item.due and not held) or self.closed:
                self.settle(b.contribution, "vested")
        elif b.decision == "soft":
            self.settle(b.contribution, "invalidated")
        else:
            self.bar(item.account)

    def transfer(self, b: Any) -> Rule:
        yield from self.speaking(b.account)
        giver, taker = self.accounts[b.account], self.named(b.to)
        yield (not self.owned["transfers"] or b.to == b.account) and "not_allowed"
        yield taker is None and "unknown_account"
        yield b.seq != giver.seq + 1 and "wrong_sequence"
        yield b.amount > giver.vested and "not_enough"
        giver.seq, giver.vested, giver.sent = b.seq, giver.vested - b.amount, giver.sent + b.amount
        taker.vested, taker.received = taker.vested + b.amount, taker.received + b.amount

    # --- audits -----------------------------------------------------------------------------------

    def window(self, steps: int) -> int:
        off = max(1, self.least - -(-self.least // 4))
        return int(self.trust["audit_rounds"]) + -(-steps // off)

    def by_chance(self, purpose: str, part: int, of: int) -> bool:
        number = digest(f"artel/lot/v1/{self.lot}/{purpose}/")
        return int.from_bytes(number, "big") * of < part << 256

    def begin_audits(self, now: Any, before: dict[str, int]) -> None:
        for source, audit in list(self.audits.items()):
            if source not in self.audits:
                continue
            for draw in audit.draws:
                if not draw.said and draw.due + bool(draw.hash) <= self.round:
                    draw.said = "lapsed"
            late = audit.since + 6 * self.window(audit.steps) <= self.round
            waits = "" in [draw.said for draw in audit.draws]
            self.end_audit(
                source, self.result(audit) or (late and not waits and self.given_up(audit))
            )
        found = dict[str, Any]()
        for peer in now.accepted:
            shown = now.shown[peer]
            if shown.span == now.round and shown.entry in self.pending:
                new = self.new(peer)
                if new or self.by_chance(f"first/{peer}", self.chances(now.round)[0], 1_000_000):
                    self.audit(found, "newcomer" if new else "first", [shown.entry])
        for peer, first in before.items():
            here = peer in now.accepted and now.shown[peer].span == first
            if here and (now.round + 1) % self.every:
                continue
            c = self.chances(first)[1] if self.round < self.total else 2_000_000
            length = self.prefix(peer, now.round - first + here, c)
            made = [
                source
                for source, item in self.pending.items()
                if (item.kind, item.node) == ("compute", peer) and 0 <= item.round - first < length
            ]
            if made and self.pending[made[0]].round == first:
                self.audit(found, "prefix", made)
        owners = {self.nodes[peer] for peer in self.present}
        for source in [s for s, audit in found.items() if not owners - {audit.account}]:
            self.cleared(source, found.pop(source))
        self.audits |= {source: found[source] for source in self.plain("audits", found)}
        self.assign()
        draws = (draw for audit in self.audits.values() for draw in audit.draws)
        self.lighter = {draw.node for draw in draws if not draw.said and not draw.hash}

    def new(self, peer: str) -> bool:
        return bool(self.right[peer] < self.trust["newcomer_rounds"])

    def cleared(self, source: str, audit: Any) -> None:
        self.untold.pop(audit.node, None)
        if source in self.pending:
            self.pending[source].right = True
        said = [draw.account for draw in audit.draws if draw.said == "accept"]
        newest = dict[str, int]()
        for last, name in [*self.right_by[audit.node], *((audit.last, name) for name in said)]:
            newest[name] = max(last, newest.get(name, 0))
        self.right_by[audit.node] = sorted((last, name) for name, last in newest.items())[-2:]
        again = [s for s in self.unproven if s in self.pending]
        again = [source for source in again if self.pending[source].node == audit.node]
        self.unproven = [source for source in self.unproven if source not in again]
        self.due.setdefault(self.round + 1, []).extend(again)
        for item in (self.pending[source] for source in again):
            if item.by:
                item.lapses = self.round + 1 + max(1, self.owned["vesting_rounds"])
        if audit.why != "newcomer":
            return
        self.right[audit.node] += 1
        if not self.new(audit.node):
            for source, one in list(self.audits.items()):
                same = (one.node, one.hardware) == (audit.node, audit.hardware)
                if same and one.why == "newcomer" and not one.draws:
                    del self.audits[source]

    def plain(self, purpose: str, names: Iterable[str]) -> list[str]:
        """In the order of a lot in which all have the weight 1."""
        left, found = sorted(names), []
        for turn in range(len(left)):
            drawn = digest(f"artel/lot/v1/{self.lot}/{purpose}/{turn}")
            found.append(left.pop(int.from_bytes(drawn, "big") % len(left)))
        return found

    def chances(self, first: int) -> tuple[int, int]:
        """f and c, in millionths, of a span that began in this round."""
        n = min(self.every - first % self.every, self.total - first)
        budget = self.rate * n
        f = min(1_000_000, budget * 9 // 10, 2_000_000 * n // (n + 38))
        if n == 1:
            return min(1_000_000, budget), 0
        sums = 500_000 + sum(1_000_000 // k for k in range(2, min(n, 4096) + 1))
        return f, (budget - f) * 1_000_000 // sums

    def prefix(self, peer: str, rounds: int, c: int) -> int:
        length, part, of = 0, min(c, 2_000_000), 2_000_000
        while max(2, length + 1) <= rounds:
            longer = max(2, length + 1)
            if not self.by_chance(f"prefix/{peer}/{longer}", part, of):
                break
            length, k = longer, longer * 1_000_000
            part, of = min(c, k + 1_000_000) * longer, min(c, k) * (longer + 1)
        return length

    def audit(self, found: dict[str, Any], why: str, sources: list[str]) -> None:
        if sources:
            items = [self.pending[source] for source in sources]
            one = Record(why=why, account=items[-1].account, first=items[0].round, draws=[])
            one.tokens, one.since = sum(item.units for item in items), self.round
            one.last, one.node = items[-1].round, items[-1].node
            one.hardware, one.panel = self.kinds.get(one.node, ""), 1
            one.steps = one.tokens // (self.windows(1) * self.seq_len)
            found[sources[-1]] = one

    def able(self) -> list[str]:
        famous = self.standings()
        members = len(famous) >= self.trust["founders"]
        return [
            peer
            for peer in self.present
            if not self.accounts[self.nodes[peer]].barred
            and self.struck.get(self.nodes[peer], 0) <= self.round
            and (not members or famous.get(self.nodes[peer]))
        ]

    def widen(self, audit: Any) -> None:
        said = [draw.said for draw in audit.draws]
        if "reject" in said:
            others = {self.nodes[peer] for peer in self.able()} - {audit.account}
            others -= {draw.account for draw in audit.draws}
            heard = sum(word in ("accept", "reject", "") for word in said)
            audit.panel = max(audit.panel, min(15, heard + len(others)))

    def most(self, audit: Any) -> int:
        return max(2, int(audit.panel) // 2 + 1)

    def assign(self) -> None:
        for audit in self.audits.values():
            self.widen(audit)
        draws = [draw for audit in self.audits.values() for draw in audit.draws]
        owing = {draw.node for draw in draws if not draw.said}
        able = (peer for peer in self.able() if peer not in owing)
        free, famous = [*self.drawn("auditors", able)], self.standings()
        room, parts = -(-len(self.present) // 4), Counter[str]()
        members = len(famous) >= self.trust["founders"]
        heavy = self.weights(self.present) if members else dict.fromkeys(self.present, 1)
        for peer, weight in heavy.items():
            parts[self.kinds[peer]] += weight

        def rank(item: tuple[str, Any]) -> int:
            if any(draw.said == "reject" for draw in item[1].draws):
                return 0
            return 1 if item[1].draws else 2 if item[1].why == "newcomer" else 3

        for source, audit in sorted(self.audits.items(), key=rank):
            bounded, said = rank((source, audit)) == 3, [draw.said for draw in audit.draws]
            ahead, enough = said.count("accept"), 1 + said.count("inconclusive")
            if "reject" in said:
                ahead, enough = max(ahead, said.count("reject")), self.most(audit)
            missing = min(enough - ahead - said.count(""), 30 - len(said))
            for _ in range(missing if room or not bounded else 0):
                asked = {audit.account, *(draw.account for draw in audit.draws)}
                left = [peer for peer in free if self.nodes[peer] not in asked]
                if not left:
                    break
                alike = [peer for peer in left if self.kinds[peer] == audit.hardware]
                common = 4 * parts[audit.hardware] > sum(parts.values())
                peer = (alike if alike and common else left)[0]
                free.remove(peer)
                due = self.round + self.window(audit.steps)
                draw = Record(node=peer, account=self.nodes[peer], due=due, hash="", said="")
                audit.draws.append(draw)
                room -= bounded

    def result(self, audit: Any) -> str:
        said = Counter(draw.said for draw in audit.draws)
        if said[""]:
            return ""
        if said["reject"] >= self.most(audit):
            return "convicted"
        if said["accept"] >= (self.most(audit) if said["reject"] else 1 + said["inconclusive"]):
            return "cleared"
        untold = said["inconclusive"] >= 3 and not said["reject"]
        over = untold or len(audit.draws) == 30
        return self.given_up(audit) if over else ""

    def given_up(self, audit: Any) -> str:
        said = Counter(draw.said for draw in audit.draws)
        untold = said["inconclusive"] > said["accept"] and audit.why != "prefix"
        return "unchecked" if untold else "undecided"

    def end_audit(self, source: str, result: str) -> None:
        if not result:
            return
        audit, wrong = self.audits.pop(source), {"convicted": "accept", "cleared": "reject"}
        for draw in audit.draws:
            if draw.said == wrong.get(result):
                self.struck[draw.account] = self.round + self.fame
                self.forfeit(draw.account)
                pay = f"audit/{source}/{draw.node}"
                if pay in self.pending:
                    self.settle(pay, "invalidated")
        if result == "convicted":
            self.bar(audit.account)
        if result == "cleared":
            self.cleared(source, audit)
        if result != "unchecked":
            return
        first = audit.why == "first"
        for made, item in list(self.pending.items()):
            theirs = (item.kind, item.account, item.node) == ("compute", audit.account, audit.node)
            after = item.round == audit.first or (first and item.round > audit.first)
            if theirs and after:
                self.settle(made, "invalidated")
        times = self.untold[audit.node][0] + 1
        self.untold[audit.node] = times, self.round + min(64, 2 ** min(times - 1, 6)) - 1
        if first:
            del self.right[audit.node]

    def drawn_to(self, b: Any) -> Any:
        draws = self.audits[b.contribution].draws if b.contribution in self.audits else []
        return next((d for d in draws if d.node == b.node and d.said != "lapsed"), None)

    def verdict_committed(self, b: Any) -> Rule:
        draw = self.drawn_to(b)
        yield self.by != {key_of(b.node)} and "wrong_signers"
        yield (draw is None or draw.said) and "not_drawn"
        yield draw.hash and "duplicate"
        draw.hash = b.hash

    def verdict(self, b: Any) -> Rule:
        draw = self.drawn_to(b)
        yield self.by != {key_of(b.node)} and "wrong_signers"
        yield draw is None and "not_drawn"
        yield draw.said and "duplicate"
        yield not draw.hash and "not_committed"
        said = vars(b) | {"differs_round": 0, "differs_step": 0}
        told = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
        yield sha256(told).hexdigest() != draw.hash and "commitment_mismatch"
        audit = self.audits[b.contribution]
        yield not all(d.said or d.hash for d in audit.draws) and "too_early"
        draw.said = b.verdict
        if b.verdict != "inconclusive" and not self.accounts[draw.account].barred:
            due = self.round + max(1, self.owned["vesting_rounds"])
            source, more = f"audit/{b.contribution}/{b.node}", {"about": b.contribution}
            more |= {"round": audit.last}
            self.grant("audit", source, draw.account, audit.tokens, due, **more)
        self.widen(audit)
        self.end_audit(b.contribution, self.result(audit))
        if self.round >= self.total:
            self.assign()

    # --- witnesses --------------------------------------------------------------------------------

    def witnessed(self, b: Any) -> Rule:
        yield not self.led and "wrong_signers"
        yield not self.witnessed_size < b.size <= self.index and "out_of_order"
        peers = [item["node"] for item in b.cosignatures]
        yield not self.nodes.keys() >= set(peers) and "unknown_node"
        self.witnessed_size = b.size
        counted = [p for p in peers if self.counts(p)]
        names = {self.nodes[p] for p in counted}
        sets = [one for one in self.electors if one.since < b.size] or self.electors[:1]
        if 0 < self.accounts_asked <= len(names) and self.quorum(counted, sets):
            covered = [size for index, size in self.certified if index < b.size]
            self.final = max([self.final, *covered])
            self.certified.append((self.index, b.size))
            if self.electors and self.electors[-1].since < self.final:
                self.electors = self.electors[-1:]
        for name in sorted(names):
            owner = self.accounts[name]
            units, owner.mark = b.size - owner.mark, max(owner.mark, b.size)
            if units > 0 and name in self.recent and not self.closed:
                due = self.round + max(1, self.owned["vesting_rounds"])
                self.grant("witness", f"witness/{b.size}/{name}", name, units, due)

    def split_seen(self, b: Any) -> Rule:
        yield from self.speaking(b.account)
        key = self.culprit(b.evidence)
        yield not key and "proves_nothing"
        size = min(int(b.evidence[side].split("\n")[1]) for side in ("first", "second"))
        own = [peer for peer in self.nodes if key in (key_of(peer), self.elected[peer])]
        names = set[str]()
        for peer in own:
            left = [name for index, name in self.moves[peer] if index >= size]
            names.add((left or [self.nodes[peer]])[0])
        known = all(self.accounts[name].barred for name in names)
        yield key in self.convicted and known and "duplicate"
        self.convicted.add(key)
        for name in names:
            self.bar(name)

    def culprit(self, shown: dict[str, Any]) -> str:
        """The key (hex) that signed two histories, or ""."""
        notes = [shown[side].rpartition("\n\n") for side in ("first", "second")]
        heads, name = [text.split("\n") for text, _, _ in notes], notes[0][2].split(" ")[1]
        origin, peer = heads[0][0], name.removeprefix("artel/witness/")
        log, witness = name == origin, peer != name and peer in self.nodes
        keys = (
            {*self.coordinators, *self.leaders}
            if log
            else {key_of(peer)}
            if witness
            else set[str]()
        )
        if not origin.startswith(f"artel/{self.run}/term/") or not keys:
            return ""
        for key in keys:
            mark = sha256(f"{name}\n".encode() + bytes([1 if log else 4]) + bytes.fromhex(key))
            lines = [b64decode(line.split(" ")[2]) for _, _, line in notes]
            if not all(line.startswith(mark.digest()[:4]) for line in lines):
                continue
            for (text, _, _), line in zip(notes, lines, strict=True):
                text, time = text + "\n", int.from_bytes(line[4:12], "big")
                if not (
                    holds(key, line[4:], text.encode())
                    if log
                    else cosigned(key, time, line[12:], text)
                ):
                    return ""
            return key if self.differ(shown, heads) else ""
        return ""

    def differ(self, shown: dict[str, Any], heads: list[list[str]]) -> bool:
        if "index" not in shown:
            return heads[0][2] != heads[1][2]
        one, other = map(b64decode, shown["leaves"])
        proven = all(
            led_to(b64decode(leaf), shown["index"], int(head[1]), proof) == b64decode(head[2])
            for leaf, head, proof in zip(shown["leaves"], heads, shown["proofs"], strict=True)
        )
        return one != other and proven


def cosigned(key: str, time: int, signature: bytes, text: str) -> bool:
    return holds(key, signature, f"cosignature/v1\ntime {time}\n{text}".encode())


def led_to(node: bytes, index: int, size: int, proof: list[str]) -> bytes:
    """Where an inclusion proof leads (RFC 9162 section 2.1.3.2)."""
    last, index = (size - 1, index) if index < size else (0, 1)
    for step in map(b64decode, proof):
        if index % 2 or index == last:
            node = digest(b"\1", step, node)
            while not index % 2 and index:
                index, last = index >> 1, last >> 1
        else:
            node = digest(b"\1", node, step)
        index, last = index >> 1, last >> 1
    return node if last == 0 and index == 0 else b""

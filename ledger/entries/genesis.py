"""Entry 0 of a ledger: the organiser's signed manifest, as far as the ledger's rules need it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic import ValidationError as PydanticError

from artel.ledger.entries import reasons
from artel.ledger.entries.body import Digest, Entry, OptionalDigest, Positive, Record
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import RECORDED, Account, Anchor, Effect, Outcome, Term
from artel.ledger.entries.rules import DataUse, LedgerRules
from artel.ledger.entries.story import Fact, Story, assigned, vesting
from artel.ledger.entries.words import plural, printable, short_key
from artel.protocol import canonical
from artel.protocol.assignment import Work
from artel.protocol.dsse import Signing
from artel.protocol.errors import DecodeError
from artel.protocol.round_state import BAD_SIGNATURE
from artel.protocol.schema import checked, refused
from artel.protocol.terms import MAX_NODES, LedgerSection, OwnershipSection, TrustSection

WORK = {
    "compute": "token that was assigned, trained on and agreed on",
    "data": "token of contributed text when it is first trained on",
    "audit": "token of a contribution that an auditor repeated",
    "witness": "entry that a contributing account replayed and cosigned",
}


@dataclass(frozen=True)
class Genesis:
    """Leaf 0: the manifest, of which the ledger reads only what its own rules need.

    The rest of the manifest may change with the protocol without changing how credit is counted.
    """

    KIND: ClassVar[str] = "genesis"
    TITLE: ClassVar[str] = "Manifest"
    run: str  # SHA-256 of the payload
    manifest: dict[str, Any]
    organiser: str  # hex key
    coordinators: tuple[str, ...]  # hex keys
    initial_state: str  # state root
    rules: LedgerRules

    @property
    def kind(self) -> str:
        return self.KIND

    @property
    def name(self) -> str:
        """The run's name for people; empty when the manifest has none."""
        name = _at(self.manifest, "config", "run", "name")
        return name if isinstance(name, str) else ""

    def to_dict(self) -> dict[str, Any]:
        return self.manifest

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        """As of every other body; only that there is no state before it that names the run."""
        if state.size:
            return reasons.SECOND_GENESIS if state.run else reasons.NO_GENESIS
        if not entry.signers:
            return BAD_SIGNATURE
        if entry.signers != {self.organiser}:
            return reasons.WRONG_SIGNERS

        def effect() -> Outcome:
            state.run, state.organiser, state.rules = self.run, self.organiser, self.rules
            state.coordinators = list(self.coordinators)
            state.terms = [Term(0, 0, self.coordinators[0])]
            state.states, state.anchors = [self.initial_state], [Anchor()]
            # Contributors of data earn without having a node, or ever having registered.
            for account, _ in self.rules.data.contributed if self.rules.data else ():
                if account and account not in state.accounts:
                    state.accounts[account] = Account(account)
                    state.changing(account)
                    state.keys[account] = account
            return RECORDED

        return effect

    def signings(self) -> Iterator[Signing]:
        """It has no document."""
        return iter(())

    def heads(self) -> Iterator[tuple[int, str]]:
        """None; see :meth:`.body.Body.heads`."""
        return iter(())

    def place(self, state: FoldState) -> tuple[int, int]:
        """It belongs to no round."""
        return -1, -1

    def concerns(self, state: FoldState) -> set[str]:
        """It names accounts, and says nothing about what they are."""
        return set()

    def says(self) -> str:
        """What it says, in a few words."""
        return f"manifest of {printable(self.name) or 'a run'}, run {short_key(self.run)}"

    def explain(self, story: Story) -> Iterator[Fact]:
        """The rules of the run, with their names in the manifest."""
        rules, ownership = self.rules, self.rules.ownership
        yield Fact(f"the run is the SHA-256 of this manifest: {self.run}")
        yield Fact(f"{printable(ownership.statement)} (ownership.statement)")
        yield Fact(f"{plural(rules.total, 'round')} (rounds.total); each assigns to each member")
        yield Fact(assigned(self))
        if rules.work.overlap_steps:
            yield Fact(
                f"the last {rules.work.overlap_steps} of {rules.work.inner_steps} inner steps are "
                "trained while the exchange goes on and count in the next round "
                "(exchange.overlap_steps)"
            )
        if rules.work.span:
            yield Fact(
                f"every {plural(rules.work.span, 'round')} all nodes begin anew from the agreed "
                "state (rounds.span)"
            )
        for kind, rate in rules.rates.items():
            yield Fact(f"{rate:,} credit for each {WORK[kind]} (ownership.rates.{kind})")
        yield Fact(vesting(rules))
        may = "may" if ownership.transfers else "may not"
        yield Fact(f"vested credit {may} be given to others (ownership.transfers)")
        who = plural(len(rules.arbiters), "arbiter")
        yield Fact(
            f"{ownership.arbiter_quorum} of {who} must sign a ruling (ownership.arbiter_quorum)"
            + ("" if ownership.arbiters else "; none is named, so it is the organiser")
        )
        least = plural(rules.witnesses, "account")
        yield Fact(
            f"a tree head is certified when {least} (ledger.witnesses), a quorum of the electors "
            "among them, cosigned it; an entry is final when a certified head covers the record "
            "of one that covers the entry"
            if rules.witnesses
            else "no entry ever becomes final (ledger.witnesses = 0)"
        )
        yield Fact(
            f"vested work counts as standing for {plural(rules.trust.standing_rounds, 'round')} "
            "(trust.standing_rounds); the run rests on its members once "
            f"{plural(rules.trust.founders, 'account')} have some (trust.founders)"
        )
        for account, tokens in rules.data.contributed if rules.data is not None else ():
            whose = f"account {short_key(account)} gave" if account else "nobody earns with"
            yield Fact(f"{whose} {plural(tokens, 'token')} of the text (data.contributed)")


class _Owners(BaseModel):
    model_config = ConfigDict(strict=True)
    organiser: Digest
    coordinators: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=8, strict=False)]
    initial_state: Digest


class _Part(Record):
    account: OptionalDigest
    tokens: Positive


class _Contributed(Record):
    parts: Annotated[tuple[_Part, ...], Field(max_length=17, strict=False)]


_S = TypeVar("_S", OwnershipSection, LedgerSection, TrustSection)


def read_genesis(payload: bytes) -> Genesis:
    """Read the payload of leaf 0.

    :raises DecodeError: when it lacks something that the ledger needs
    """
    manifest = canonical.loads(payload, floats=True)
    if not isinstance(manifest, dict):
        raise DecodeError("the manifest is not a JSON object")
    keys = ("organiser", "coordinators", "initial_state")
    owners = checked(_Owners, {key: manifest.get(key) for key in keys}, "entry genesis")
    run = hashlib.sha256(payload).hexdigest()
    rules = _rules(manifest, owners.organiser)
    return Genesis(
        run, manifest, owners.organiser, owners.coordinators, owners.initial_state, rules
    )


def _rules(manifest: dict[str, Any], organiser: str) -> LedgerRules:
    work = _work(manifest)
    # A contribution has the tokens of a tail and of a head.
    if 2 * work.tokens(work.most) >= 1 << 53:
        raise DecodeError("entry genesis: a round assigns 2^52 tokens or more")
    ownership = _section(manifest, OwnershipSection, "ownership")
    return LedgerRules(
        total=work.total,
        work=work,
        ownership=ownership,
        witnesses=_section(manifest, LedgerSection, "ledger").witnesses,
        arbiters=frozenset(ownership.arbiters or (organiser,)),
        trust=_section(manifest, TrustSection, "trust"),
        min_nodes=max(1, _count(manifest, "config", "rounds", "min_nodes")),
        max_nodes=_count(manifest, "config", "rounds", "max_nodes") or MAX_NODES,
        data=_data_use(manifest),
    )


def _work(manifest: dict[str, Any]) -> Work:
    box = _at(manifest, "config", "rounds", "box_s")
    box = 0 if box is None else box
    if not isinstance(box, int | float) or isinstance(box, bool):
        raise DecodeError("entry genesis: config.rounds.box_s is not a number")
    topology = _at(manifest, "config", "exchange", "topology")
    topology = "auto" if topology is None else topology
    if topology not in ("auto", "gather", "sharded"):
        raise DecodeError("entry genesis: config.exchange.topology is none that is known")
    return Work(
        total=_rule(manifest, "config", "rounds", "total"),
        inner_steps=_rule(manifest, "config", "rounds", "inner_steps"),
        overlap_steps=_count(manifest, "config", "exchange", "overlap_steps"),
        boxed=box > 0,
        batch_size=_rule(manifest, "config", "optimizer", "batch_size"),
        seq_len=_rule(manifest, "config", "data", "seq_len"),
        topology=topology,
        span=_count(manifest, "config", "rounds", "span"),
    )


def _count(manifest: dict[str, Any], *path: str) -> int:
    """A whole number, 0 where it is left out."""
    value = _at(manifest, *path)
    value = 0 if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise DecodeError(f"entry genesis: {'.'.join(path)} is not a whole number")
    return value


def _section(manifest: dict[str, Any], schema: type[_S], name: str) -> _S:
    """A section of the configuration; what it leaves out has the value of this version."""
    try:
        section = _at(manifest, "config", name)
        return schema.model_validate_json(canonical.dumps({} if section is None else section))
    except PydanticError as error:
        raise refused(error, "entry genesis") from None


def _data_use(manifest: dict[str, Any]) -> DataUse | None:
    contributed = _at(manifest, "data", "contributed")
    given = {"parts": [] if contributed is None else contributed}
    parts = checked(_Contributed, given, "entry genesis")
    if not parts.parts:
        return None
    tokens = _rule(manifest, "data", "train", "tokens")
    if sum(part.tokens for part in parts.parts) != tokens:
        raise DecodeError("entry genesis: data.contributed is not the training split")
    seed = _at(manifest, "config", "run", "seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 53:
        raise DecodeError("entry genesis: config.run.seed is not a whole number")
    return DataUse(
        seed=seed,
        tokens=tokens,
        shard_tokens=_rule(manifest, "config", "data", "shard_tokens"),
        seq_len=_rule(manifest, "config", "data", "seq_len"),
        span_windows=_rule(manifest, "config", "data", "span_windows"),
        contributed=tuple((part.account, part.tokens) for part in parts.parts),
    )


def _rule(manifest: dict[str, Any], *path: str) -> int:
    """A positive whole number of the manifest."""
    value = _at(manifest, *path)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DecodeError(f"entry genesis: {'.'.join(path)} is not a positive whole number")
    return value


def _at(manifest: dict[str, Any], *path: str) -> Any:
    """The value at a path of keys; None where there is none."""
    value: Any = manifest
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value

"""Slices of a sharded round recomputed offline: the guilty are found, from files alone."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from aggregate_world import numbers
from artel.ledger.entries.genesis import read_genesis
from artel.ledger.fold.layout import LAYOUT_FILE, layout_of
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.sync.recompute_state import root_in_child
from artel.ledger.tlog.checkpoint import origin_of, sign_checkpoint
from artel.protocol import content, tether
from artel.protocol.dsse import Envelope
from artel.protocol.errors import CheckFailed, ResourceError, UsageError
from artel.protocol.exchange import codec, pseudogradient
from artel.protocol.exchange.aggregate_slice import recompute, round_slices
from artel.protocol.exchange.next_state import Base, Given, next_state
from artel.protocol.exchange.parts import Part, fragment
from artel.protocol.exchange.pseudogradient import Header, IndexItem
from artel.protocol.identity import Identity
from artel.protocol.manifest import (
    DataFacts,
    Manifest,
    ModelFacts,
    SplitFacts,
    TokenizerFacts,
    sign,
)
from artel.protocol.manifest_template import EXAMPLE
from artel.protocol.net.blobs import BlobStore
from artel.protocol.run_config import ExchangeSection, ModelSection, RoundsSection, RunConfig
from artel.protocol.state import Layout, State, state_root, write_state
from client_world import run_command, write_key
from command_world import group
from ledger_world import World, encoded
from log_server import serving

main = group("ledger")

LAYOUT = Layout.of([("embed", (300, 64)), ("up", (64, 200)), ("norm", (64,)), ("down", (200, 64))])


def manifest_of(
    world: World, layout: Layout, config: RunConfig, initial_state: str = ""
) -> Manifest:
    """What an organiser signs for a model of this layout."""
    split = SplitFacts(index="11" * 32, root="22" * 32, shards=1, tokens=200_000)
    return Manifest(
        config=config,
        organiser=world.organiser.key,
        coordinators=(world.coordinator.key,),
        tokenizer=TokenizerFacts(id="33" * 32, vocab_size=1024),
        data=DataFacts(train=split, validation=split, dtype="uint16"),
        model=ModelFacts(layout=layout.digest, parameters=layout.parameters),
        initial_state=initial_state or hashlib.sha256(b"state 0").hexdigest(),
    )


def config_of(**exchange: Any) -> RunConfig:
    rules = {"codec": "int4", "topology": "sharded"} | exchange
    return EXAMPLE.model_copy(
        update={
            "rounds": RoundsSection(inner_steps=4),
            "exchange": ExchangeSection.model_validate(rules),
        }
    )


def known_by(parts: Sequence[bytes]) -> str:
    """The payload of a contribution in slices."""
    return pseudogradient.joined_digest([IndexItem.of(part).payload for part in parts])


@dataclass(eq=False)
class Published(World):
    """A world whose members have published real blobs of one round, for a model of LAYOUT."""

    nodes: int = 4
    name: str = "published"
    rules: ExchangeSection = config_of().exchange

    def __post_init__(self) -> None:
        super().__post_init__()
        config = config_of().model_copy(update={"exchange": self.rules})
        self.genesis = sign(manifest_of(self, LAYOUT, config), self.organiser)
        self.work = read_genesis(self.genesis.payload).rules.work
        self.run = hashlib.sha256(self.genesis.payload).hexdigest()
        self.origin = origin_of(self.run)
        self.sign = partial(sign_checkpoint, self.coordinator, self.origin)
        self.base = read_genesis(self.genesis.payload).initial_state
        self.parts: list[Part] = round_slices(LAYOUT, self.rules, 0, self.nodes)
        self.published = {member.key: self._publish(member) for member in self.members}

    def _publish(self, member: Identity) -> tuple[bytes, list[bytes]]:
        """Index and sub-blobs of a member's contribution to round 0."""
        full = numbers(member.key, LAYOUT.parameters, -36)
        chosen = codec.of(self.rules)
        parts = [
            Header(0, self.base, chosen).pack(part.layout, part.take(full)) for part in self.parts
        ]
        listed = [IndexItem.of(part) for part in parts]
        return pseudogradient.pack_index(0, self.base, listed), parts

    def contribution(
        self, member: Identity, round: int, attempt: int = 0, **changes: Any
    ) -> Envelope:
        payload = {"payload": known_by(self.published[member.key][1])} if round == 0 else {}
        return super().contribution(member, round, attempt, **payload | changes)

    def blob(self, round: int, attempt: int, member: Identity) -> tuple[str, bytes]:
        index, _ = self.published[member.key]
        return content.content_id(index), super().blob(round, attempt, member)[1]

    def right(self, number: int) -> bytes:
        """The true result of a slice, of all members."""
        return recompute(
            LAYOUT,
            self.rules,
            round=0,
            members=self.nodes,
            slice=number,
            base=self.base,
            blobs={m.peer_id: self.published[m.key][1][number] for m in self.members},
            tokens={m.peer_id: self.work.tokens(4) for m in self.members},
        )

    def recorded(self, *wrong: int, without: Sequence[int] = ()) -> list[Envelope]:
        """The slices as their aggregators record them, some of them wrong or not at all."""
        found = []
        for number in range(len(self.parts)):
            data = self.right(number)
            if number in wrong:
                data = data[:-1] + bytes([data[-1] ^ 1])
            if number not in without:
                blob = content.content_id(data)
                found.append(
                    self.aggregate(0, number, blob=blob, size=len(data), slices=len(self.parts))
                )
        return found

    def homes(self, folder: Path, *history: Envelope) -> list[Path]:
        """The coordinator's home (ledger and layout), then one of each member with its blobs."""
        coordinator = folder / "coordinator"
        (coordinator / LAYOUT_FILE).parent.mkdir(parents=True)
        (coordinator / LAYOUT_FILE).write_bytes(LAYOUT.encode())
        leaves = encoded((*self.start, *history))
        with LedgerStore.open(coordinator / DATABASE_NAME, create=True, run=self.run) as store:
            store.append(leaves, self.sign)
        homes = [coordinator]
        for number, member in enumerate(self.members):
            home = folder / f"node-{number}"
            blobs = BlobStore(home / "blobs")
            index, parts = self.published[member.key]
            for data in (index, *parts):
                blobs.put(data)
            homes.append(home)
        return homes


WORLD = Published()
CLOSED = WORLD.until_closed(0)
GUILTY = WORLD.aggregator(0, 1)


def homes_of(homes: Sequence[Path]) -> list[str]:
    """How the commands are told of them."""
    first, *others = map(str, homes)
    return ["--home", first, *(part for home in others for part in ("--also", home))]


def recheck(
    homes: Sequence[Path], capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[int, str]:
    arguments = homes_of(homes)
    code = main(["recheck", "0", *arguments, *more])
    return code, capsys.readouterr().out


def test_a_round_in_which_every_slice_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    homes = WORLD.homes(tmp_path, *CLOSED, *WORLD.recorded(), WORLD.agreed(1))
    code, shown = recheck(homes, capsys)
    assert code == 0
    assert shown.count("right: ") == len(WORLD.parts) == 4
    assert shown.endswith("round 0: 4 slices: 4 right\n")


@pytest.mark.parametrize(
    "rules",
    [{"codec": "fp32"}, {"codec": "sparse"}, {"aggregator": "centered_clip"}, {"fragments": 2}],
)
def test_every_way_of_combining_can_be_rechecked(
    rules: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = Published(rules=config_of(**rules).exchange)
    last = len(world.parts) - 1
    homes = world.homes(tmp_path, *world.until_closed(0), *world.recorded(last))
    code, shown = recheck(homes, capsys, "--json")
    told = json.loads(shown)
    assert code == 1
    assert [item["status"] for item in told["slices"]] == ["right"] * last + ["wrong"]


@pytest.mark.parametrize("denied", [True, False])
def test_a_wrong_aggregator_is_convicted_by_anyone_who_looks(
    denied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = [*CLOSED, *WORLD.recorded(1)]
    if denied:
        accuser = WORLD.aggregator(0, 2)
        right = content.content_id(WORLD.right(1))
        history.append(WORLD.slice_wrong(accuser, 0, 1, blob=right))
    history.append(WORLD.agreed(1, wrong=[1] if denied else []))
    homes = WORLD.homes(tmp_path, *history)
    code, shown = recheck(homes, capsys)
    assert code == 1
    wrong = next(line for line in shown.splitlines() if "WRONG" in line)
    assert wrong.startswith("slice  1  WRONG (recorded ")
    assert f"recomputed {content.content_id(WORLD.right(1))}, by node {GUILTY.peer_id}" in wrong
    assert ("was made without it" if denied else "was MADE WITH IT") in wrong
    _, shown = recheck(homes, capsys, "--json")
    told = json.loads(shown)
    assert (told["holds"], told["as_of"]) == (False, len(WORLD.start) + len(history))
    item = told["slices"][1]
    assert (item["status"], item["node"], item["holds"]) == ("wrong", GUILTY.peer_id, False)
    assert item["entry"] == len(WORLD.start) + len(CLOSED) + 1
    assert len(item["accused"]) == int(denied)
    assert item["denied"] is denied


def test_a_right_slice_that_was_denied_is_found_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accuser = WORLD.aggregator(0, 2)
    history = [*WORLD.recorded(), WORLD.slice_wrong(accuser, 0, 1), WORLD.agreed(1, wrong=[1])]
    code, shown = recheck(WORLD.homes(tmp_path, *CLOSED, *history), capsys)
    assert code == 1
    assert "the agreed state denies it all the same" in shown


def test_what_is_missing_is_named_and_what_is_damaged_is_not_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator, *nodes = WORLD.homes(tmp_path, *CLOSED, *WORLD.recorded(3, without=[2]))
    code, shown = recheck([coordinator], capsys)
    assert code == 4
    assert shown.count("not checkable: no home holds the index ") == 4
    code, shown = recheck([coordinator, *nodes[:3]], capsys)
    assert code == 4
    assert WORLD.members[3].peer_id in shown
    code, shown = recheck([coordinator, *nodes], capsys)
    assert code == 1
    assert "slice  2  not recorded by node" in shown
    # One blob of the last home is damaged, another one gone: their slices alone suffer.
    index, parts = WORLD.published[WORLD.members[3].key]
    damaged, gone = (nodes[3] / "blobs" / content.content_id(parts[n]) for n in (0, 3))
    data = bytearray(damaged.read_bytes())
    data[100] ^= 1
    damaged.write_bytes(data)
    gone.unlink()
    code, shown = recheck([coordinator, *nodes], capsys)
    lines = shown.splitlines()
    assert code == 0
    assert f"slice  0  not checkable: no home holds the blob {damaged.name}" in lines[0]
    assert "slice  1  right" in lines[1]
    assert "slice  3  not checkable" in lines[3]
    assert lines[4] == "round 0: 4 slices: 1 right, 1 not recorded, 2 not checkable"
    # Another home that has them mends it.
    shutil.copytree(nodes[3] / "blobs", tmp_path / "more" / "blobs")
    more = BlobStore(tmp_path / "more" / "blobs")
    for part in (index, *parts):
        more.delete(content.content_id(part))
        more.put(part)
    code, shown = recheck([coordinator, *nodes, tmp_path / "more"], capsys)
    assert code == 1
    assert "slice  3  WRONG" in shown


def test_rounds_without_slices_are_refused_with_a_way_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    homes = WORLD.homes(tmp_path / "open", *CLOSED[:-1])
    with pytest.raises(UsageError, match="not been closed"):
        recheck(homes, capsys)
    gather = Published(rules=config_of(topology="gather").exchange)
    homes = gather.homes(tmp_path / "gather", *gather.round(0))
    with pytest.raises(UsageError, match="was not sharded"):
        recheck(homes, capsys)


def test_a_round_that_came_to_nothing_can_be_rechecked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    homes = WORLD.homes(tmp_path, *CLOSED, *WORLD.recorded(1), WORLD.closed(0, accepted=[]))
    code, shown = recheck(homes, capsys)
    assert code == 1
    assert shown.count("right: ") == 3


def test_a_repetition_that_is_not_closed_hides_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = [*CLOSED, *WORLD.recorded(1), WORLD.closed(0, accepted=[]), WORLD.opened(0, 1)]
    code, shown = recheck(WORLD.homes(tmp_path, *history), capsys, "--json")
    assert code == 1
    assert [item["denied"] for item in json.loads(shown)["slices"]] == [None] * 4


def test_it_takes_no_torch_where_a_coordinator_has_left_the_layout(tmp_path: Path) -> None:
    homes = WORLD.homes(tmp_path, *CLOSED, *WORLD.recorded())
    done = run_command("recheck", "0", *homes_of(homes))
    assert (done.code, done.err) == (0, "")
    assert not {"torch", "hivemind", "transformers"} & done.modules


GPT2 = ModelSection(
    type="gpt2", config={"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128}
)
GPT2_LAYOUT = Layout.of(
    (f"transformer.{name}", shape)
    for name, shape in (
        *(("h.0.attn.c_attn.bias", (48,)), ("h.0.attn.c_attn.weight", (16, 48))),
        *(("h.0.attn.c_proj.bias", (16,)), ("h.0.attn.c_proj.weight", (16, 16))),
        *(("h.0.ln_1.bias", (16,)), ("h.0.ln_1.weight", (16,))),
        *(("h.0.ln_2.bias", (16,)), ("h.0.ln_2.weight", (16,))),
        *(("h.0.mlp.c_fc.bias", (64,)), ("h.0.mlp.c_fc.weight", (16, 64))),
        *(("h.0.mlp.c_proj.bias", (16,)), ("h.0.mlp.c_proj.weight", (64, 16))),
        *(("ln_f.bias", (16,)), ("ln_f.weight", (16,))),
        *(("wpe.weight", (128, 16)), ("wte.weight", (1024, 16))),
    )
)


def test_the_layout_is_worked_out_where_there_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of().model_copy(update={"model": GPT2})
    leaf = sign(manifest_of(WORLD, GPT2_LAYOUT, config), WORLD.organiser).encode()
    assert layout_of(leaf, []) == GPT2_LAYOUT
    for broken in ("/nowhere/python", "/bin/false", "/bin/cat"):
        monkeypatch.setattr(sys, "executable", broken)
        with pytest.raises(ResourceError, match="worked out"):
            layout_of(leaf, [])


def test_a_file_with_another_layout_is_not_believed(tmp_path: Path) -> None:
    (home,) = WORLD.homes(tmp_path)[:1]
    leaf = WORLD.genesis.encode()
    assert layout_of(leaf, [tmp_path, home]) == LAYOUT
    other = Layout.of([("x", (8,))])
    (home / LAYOUT_FILE).write_bytes(other.encode())
    second = tmp_path / "second"
    (second / LAYOUT_FILE).parent.mkdir(parents=True)
    (second / LAYOUT_FILE).write_bytes(LAYOUT.encode())
    assert layout_of(leaf, [home, second]) == LAYOUT


# --- states ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class Trained(World):
    """A world whose members publish real blobs in every round, and come to real states."""

    nodes: int = 3
    name: str = "trained"
    rules: ExchangeSection = config_of(topology="gather", fragments=2).exchange
    lies: tuple[int, ...] = ()
    """States for which another root is agreed on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        config = config_of().model_copy(update={"exchange": self.rules})
        params = numbers("state 0", LAYOUT.parameters, -36)
        first = State(0, LAYOUT.digest, params, 0 * params if self.rules.outer.momentum else None)
        self.bases = [Base(first, state_root(first))]
        manifest = manifest_of(self, LAYOUT, config, self.bases[0].root)
        self.genesis = sign(manifest, self.organiser)
        self.work = read_genesis(self.genesis.payload).rules.work
        self.run = hashlib.sha256(self.genesis.payload).hexdigest()
        self.origin = origin_of(self.run)
        self.sign = partial(sign_checkpoint, self.coordinator, self.origin)
        self.blobs: dict[str, bytes] = {}
        self.given: dict[tuple[int, str], str] = {}
        self.payloads: dict[str, str] = {}
        self.total_rounds = config.rounds.total
        self.entries = [entry for number in range(4) for entry in self.round(number)]

    def round(self, round: int) -> list[Envelope]:
        sharded = self.rules.topology == "sharded"
        pieces = [fragment(LAYOUT, self.rules.fragments, round)]
        if sharded:
            pieces = round_slices(LAYOUT, self.rules, round, self.nodes)
        base, given = self.bases[round], []
        header = Header(round, base.root, codec.of(self.rules))
        for member in self.members:
            full = numbers(f"{round} {member.key}", LAYOUT.parameters, -36)
            parts = [header.pack(piece.layout, piece.take(full)) for piece in pieces]
            index = pseudogradient.pack_index(round, base.root, [IndexItem.of(p) for p in parts])
            for data in (*parts, index):
                self.blobs[content.content_id(data)] = data
            shown = content.content_id(index if sharded else parts[0])
            self.given[round, member.key] = shown
            self.payloads[shown] = known_by(parts)
            given.append(Given(member.peer_id, self.work.tokens(4), parts))
        members = self.nodes if sharded else 0
        rounds = self.total_rounds
        state = next_state(self.rules, rounds, LAYOUT, base, given, members=members).state
        root = state_root(state)
        if round + 1 in self.lies:
            state = State(state.round, state.layout_digest, -state.params, state.momentum)
            root = state_root(state)
        self.bases.append(Base(state, root))
        return [*self.until_closed(round), self.agreed(round + 1, root=root)]

    def opened(self, round: int, attempt: int = 0, **changes: Any) -> Envelope:
        return super().opened(round, attempt, **{"base": self.bases[round].root} | changes)

    def contribution(
        self, member: Identity, round: int, attempt: int = 0, **changes: Any
    ) -> Envelope:
        payload = self.payloads[self.given[round, member.key]]
        base = {"base": self.bases[round].root, "size": 1000, "payload": payload}
        return super().contribution(member, round, attempt, **base | changes)

    def blob(self, round: int, attempt: int, member: Identity) -> tuple[str, bytes]:
        return self.given[round, member.key], super().blob(round, attempt, member)[1]

    def home(self, folder: Path, *states: int) -> Path:
        """A home with the ledger, the layout, every contribution, and these states."""
        (folder / LAYOUT_FILE).parent.mkdir(parents=True)
        (folder / LAYOUT_FILE).write_bytes(LAYOUT.encode())
        with LedgerStore.open(folder / DATABASE_NAME, create=True, run=self.run) as store:
            store.append(encoded((*self.start, *self.entries)), self.sign)
        blobs = BlobStore(folder / "blobs")
        for data in self.blobs.values():
            blobs.put(data)
        for number in states:
            write_state(folder / "blobs" / self.bases[number].root, self.bases[number].state)
        return folder


def verified(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit code and what ``artel ledger verify --json`` says."""
    try:
        code = main(["verify", *map(str, arguments), "--json"])
    except CheckFailed:
        code = 1
    return code, json.loads(capsys.readouterr().out)


def statuses(told: dict[str, Any]) -> dict[int, str]:
    return {item["state"]: item["status"] for item in told["states"]}


@pytest.mark.parametrize(
    "rules",
    [{"fragments": 2}, {"topology": "sharded"}, {"codec": "sparse", "topology": "sharded"}],
)
def test_every_state_follows_from_the_first_and_the_contributions(
    rules: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exchange = config_of(**{"topology": "gather"} | rules).exchange
    home = Trained(rules=exchange).home(tmp_path / "home", 0)
    code, told = verified(capsys, "--home", home, "--states", 2)
    assert (code, told["verified"]) == (0, True)
    assert statuses(told) == {3: "right", 4: "right"}  # by way of 1 and 2
    assert "2 were recomputed" in told["not_checked"][0]["detail"]
    assert told["recomputed"] == {"coordinator": 4, "outside": 0, "here": 2, "of": 4}
    assert statuses(verified(capsys, "--home", home, "--states", 99)[1]) == dict.fromkeys(
        range(1, 5), "right"
    )
    assert verified(capsys, "--home", home)[1]["states"] == []


def test_a_state_that_no_contributions_lead_to_is_found_by_anybody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = Trained(lies=(3,))
    home = world.home(tmp_path / "home", 0, 2)
    code, told = verified(capsys, "--home", home, "--states", 3)
    assert (code, told["verified"]) == (1, False)
    assert statuses(told) == {2: "right", 3: "wrong", 4: "not checkable"}
    # With the invented state itself what was made of it can be checked again.
    more = tmp_path / "more" / "blobs"
    more.mkdir(parents=True)
    write_state(more / world.bases[3].root, world.bases[3].state)
    code, told = verified(capsys, "--home", home, "--home", more.parent, "--states", 3)
    assert (code, statuses(told)) == (1, {2: "right", 3: "wrong", 4: "right"})


async def test_who_finds_a_wrong_state_says_so_in_the_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # no reader of before
    world = Trained(lies=(3,))
    home = world.home(tmp_path / "home", 0, 2)
    write_key(home / "node.key", world.members[0])

    where = ["--home", str(home), "--run", world.run, "--json"]
    path = tmp_path / "coordinator" / DATABASE_NAME
    with LedgerStore.open(path, create=True, run=world.run) as store:
        store.append(world.add(*world.start, *world.entries), world.sign)
        with serving(world, store) as log:

            def said(number: int) -> Any:
                assert main(["accuse", str(number), "--from", log.url, *where]) == 0
                return json.loads(capsys.readouterr().out)

            assert said(2) == {"state": 2, "root": world.bases[2].root, "right": True}
            statement = said(3)["statement"]
            assert log.state.charges
    assert (statement["kind"], statement["recorded"]) == ("state_wrong", world.bases[3].root)
    assert statement["root"] == await root_in_child(home, 3) != world.bases[3].root
    with pytest.raises(UsageError):
        main(["accuse", "9", *where])
    with pytest.raises(CheckFailed):
        await root_in_child(home, 4)


def test_what_cannot_be_had_is_said_and_what_is_damaged_is_not_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = Trained()
    home = world.home(tmp_path / "home")
    code, told = verified(capsys, "--home", home, "--states", 2)
    assert (code, told["verified"]) == (4, True)
    assert statuses(told) == {3: "not checkable", 4: "not checkable"}
    for number in (1, 3):
        write_state(home / "blobs" / world.bases[number].root, world.bases[number].state)
    damaged = home / "blobs" / world.bases[1].root
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    gone = home / "blobs" / world.given[1, world.members[0].key]
    gone.unlink()
    code, told = verified(capsys, "--home", home, "--states", 4)
    assert code == 0
    assert statuses(told) == dict.fromkeys((1, 2, 3), "not checkable") | {4: "right"}
    write_state(damaged, world.bases[1].state)
    _, told = verified(capsys, "--home", home, "--states", 4)
    assert gone.name in told["states"][1]["why"]


def test_recomputing_states_takes_no_torch(tmp_path: Path) -> None:
    home = Trained().home(tmp_path / "home", 3)
    done = run_command("verify", "--home", str(home), "--states", "1")
    assert (done.code, done.err) == (0, "")
    assert not {"torch", "hivemind", "transformers"} & done.modules


def test_the_process_that_works_out_a_layout_ends_with_whoever_wants_it() -> None:
    """A coordinator that was killed while it began to stand by left one behind."""
    config = config_of().model_copy(update={"model": GPT2})
    leaf = sign(manifest_of(WORLD, GPT2_LAYOUT, config), WORLD.organiser).encode()
    ask = "import sys; from artel.ledger.fold import layout as l; "
    ask += "l.layout_of(sys.stdin.buffer.read(), [])"
    asking = subprocess.Popen(
        [sys.executable, "-P", "-c", ask], stdin=subprocess.PIPE, env=tether.environment()
    )
    assert asking.stdin is not None
    asking.stdin.write(leaf)
    asking.stdin.close()
    found: list[psutil.Process] = []
    while not found:
        assert asking.poll() is None
        below = psutil.Process(asking.pid).children()
        # What it becomes: before that it is a copy of its parent, which is not tied yet.
        found = [child for child in below if child.cmdline()[1:3] == ["-P", "-m"]]
    (child,) = found
    child.suspend()  # it would end by itself soon
    asking.kill()
    asking.wait()
    gone, left = psutil.wait_procs([child], timeout=20)
    for process in left:
        process.kill()
    assert gone

"""A ledger that goes on in another term: what was given up with the one before is replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Event

import pytest

from artel.coordinator.takeover import shows_handover
from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.entries.documents import FOLDER, document_of, path_of
from artel.ledger.entries.records import Term
from artel.ledger.fold.effects import Fold
from artel.ledger.store import finality
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.published import LostEntries, heads_error, known_heads
from artel.ledger.store.store import CHECKPOINT_NAME, DATABASE_NAME, LedgerStore
from artel.ledger.store.verify import verify_home
from artel.ledger.sync.audit import audit_log
from artel.ledger.sync.leadership import said_by
from artel.ledger.sync.replica import Replica
from artel.ledger.sync.signed_tree import SignedTree, common_size, take_over, verified_head
from artel.ledger.sync.source import TERMS_PATH, FolderSource
from artel.ledger.sync.witness import Witness
from artel.ledger.tlog.checkpoint import (
    origin_of,
    parse_checkpoint,
    sign_checkpoint,
    verifier_keys,
)
from artel.ledger.tlog.cosignature import witness_name
from artel.protocol.dsse import Envelope
from artel.protocol.errors import CheckFailed, Unreachable
from artel.protocol.identity import Identity
from client_world import cosigned, write_tiles_of
from ledger_world import World, encoded, forged, key

WORLD = World(nodes=4, waiting=1, total=200)
(STANDBY,) = WORLD.standbys
LOG = encoded([*WORLD.start, *(each for number in range(40) for each in WORLD.round(number))])
ROUND = 31
"""The first one that is not in what both coordinators have."""
FIRST, EACH = len(WORLD.start), len(WORLD.round(0))
KEPT, GIVEN_UP = FIRST + ROUND * EACH, FIRST + (ROUND + 5) * EACH
"""Entries that both have, and that the first one has: both behind the first full tile."""
STEPS = (100, 200, 230, KEPT, 290, GIVEN_UP)
TERM_1 = origin_of(WORLD.run, 1)
SIGN = partial(sign_checkpoint, STANDBY, TERM_1)


def handed(by: int = 3, size: int = KEPT, of: int = KEPT, log: Sequence[bytes] = LOG) -> Envelope:
    """The handover, with the seals of so many members.

    :param size: of the head that they name
    :param of: size of the tree whose root they name
    """
    root = WORLD.head(log[:of]).root.hex()
    known = {"term": 0, "next": STANDBY.key, "size": size, "root": root}
    said = [entries.seal(node, WORLD.run, **known) for node in WORLD.members[:by]]
    seals = [entries.open_seal(each.encode())[1] for each in said]
    return entries.handover(STANDBY, WORLD.run, term=1, seals=seals)


def grown(path: Path, *sizes: int, log: Sequence[bytes] = LOG) -> Replica:
    """A copy that has followed the first coordinator up to each of these sizes."""
    store = LedgerStore.open(path / DATABASE_NAME, create=True, run=WORLD.run)
    replica = Replica(store, Fold.open(store))
    for size in sizes:
        head = WORLD.head(log[:size])
        store.append_replica(
            log[store.size : size], WORLD.sign(size, head.root), replica.fold.beside
        )
        replica.fold.settle()
    return replica


def successor(
    folder: Path, first: Envelope, *sizes: int, log: Sequence[bytes] = LOG, by: Identity = STANDBY
) -> FolderSource:
    """The ledger of another coordinator, which goes on with this entry and one of its own."""
    replica = grown(folder / "standby", *(sizes or STEPS[:4]), log=log)
    with closing(replica.store) as store:
        store.begin_term(1)
        opened, sign = forged(WORLD.opened(ROUND), by), partial(sign_checkpoint, by, TERM_1)
        for entry in (first, opened):
            store.append([entry.encode()], sign, replica.fold.beside)
            replica.fold.settle()
        return FolderSource(write_tiles_of(store, folder / "tiles"))


def follow(replica: Replica, source: FolderSource) -> None:
    text = source.get("checkpoint").decode()
    keys = verifier_keys(TERM_1, [STANDBY.key])
    try:
        take_over(replica.store, source, verified_head(source, text, keys, WORLD.run), replica.fold)
    finally:
        if replica.fold.anew or replica.store.size > replica.state.size:
            replica.fold.settle()


def test_what_was_given_up_is_replaced_and_everything_holds(tmp_path: Path) -> None:
    source = successor(tmp_path, handed())
    home = tmp_path / "home"
    with closing(HeadStore(home / HEADS_NAME)) as heads:
        replica = grown(home, *STEPS)
        heads.advance(WORLD.origin, 0, GIVEN_UP, replica.store.root)
        follow(replica, source)
        store, state = replica.store, replica.state
        assert (store.size, store.term, state.size) == (KEPT + 2, 1, KEPT + 2)
        assert (state.term.leader, state.round) == (STANDBY.key, ROUND)
        assert not state.ignored
        assert [term.begins for term in store.terms()] == [0, KEPT]
        assert store.sizes() == [100, 200, 230, KEPT, KEPT + 2]
        # What this home cosigned of the part that was given up is not held against it.
        for terms, fits in ((store.terms(), True), ((), False)):
            known = known_heads(heads, WORLD.run, terms)
            assert (heads_error(known, store.size, store.root_at) == "") is fits
        store.close()
    assert verify_home(home).verified, [each for each in verify_home(home).checks if not each.ok]
    again = Replica.open(home / DATABASE_NAME, WORLD.run)
    with closing(again.store):
        assert again.state.encode() == state.encode()
        assert again.store.term == 1


def test_what_was_certified_and_given_up_is_neither_certified_nor_cosigned_any_more(
    tmp_path: Path,
) -> None:
    """Where that is still kept: what a home looks up anew may be kept once more before it ends."""
    source = successor(tmp_path, handed())
    replica = grown(tmp_path / "home", *STEPS)
    with closing(HeadStore(tmp_path / HEADS_NAME)) as heads, closing(replica.store) as store:
        for size in (KEPT, GIVEN_UP):
            heads.add_note(cosigned(store.note_at(size), *WORLD.members))
        for newest in (GIVEN_UP, KEPT):
            state = replica.state
            assert finality.size_of(finality.newest_certified(heads, state)) == newest
            assert finality.size_of(finality.newest_cosigned(heads, state)) == newest
            assert finality.known_certified(store, heads, state)[1] == newest
            if not state.term.number:
                follow(replica, source)


def test_a_crash_before_the_checkpoint_file_follows_is_mended_when_it_is_opened(
    tmp_path: Path,
) -> None:
    source = successor(tmp_path, handed())
    replica = grown(tmp_path / "home", *STEPS)
    published = tmp_path / "home" / CHECKPOINT_NAME
    before = published.read_bytes()
    follow(replica, source)
    replica.store.close()
    published.write_bytes(before)  # of more entries than there are now
    with closing(Replica.open(tmp_path / "home" / DATABASE_NAME, WORLD.run).store) as store:
        assert published.read_text() == store.latest_note
    # A ledger that has lost its end within one term is another thing.
    short = grown(tmp_path / "short", *STEPS[:3])
    short.store.close()
    (tmp_path / "short" / CHECKPOINT_NAME).write_bytes(before)
    with pytest.raises(LostEntries):
        Replica.open(tmp_path / "short" / DATABASE_NAME, WORLD.run)


def test_a_term_that_nobody_sealed_replaces_nothing(tmp_path: Path) -> None:
    source = successor(tmp_path, handed(by=2))
    replica = grown(tmp_path / "home", *STEPS)
    root, state = replica.store.root, replica.state
    with pytest.raises(CheckFailed, match="of term 1, its entries are not"):
        follow(replica, source)
    assert (replica.store.root, replica.store.term, replica.state) == (root, 0, state)
    assert replica.state.ignored == {}
    replica.store.close()
    assert verify_home(tmp_path / "home").verified


def test_a_term_that_does_not_go_on_from_the_heads_in_its_seals_is_taken_over_by_nobody(
    tmp_path: Path,
) -> None:
    with pytest.raises(CheckFailed, match=f"handover: the head of {KEPT} entries"):
        successor(tmp_path, handed(of=KEPT - 1))
    replica = grown(tmp_path / "home", *STEPS[:3])
    with closing(replica.store) as store:
        root, first = store.root, handed(size=store.size, of=store.size - 1).encode()
        store.begin_term(1)
        with pytest.raises(CheckFailed, match=r"handover: the head of .* is not of this tree"):
            store.append([first], SIGN, replica.fold.beside)
        assert store.root == root


@pytest.mark.parametrize("size", [100, 256, KEPT])
def test_cosignatures_of_another_history_are_taken_by_nobody(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = [*LOG[: size - 1], entries.account(key("another"), WORLD.run).encode()]
    log = [*LOG[:KEPT], WORLD.witnessed(other).encode(), *LOG[KEPT:GIVEN_UP]]
    said = f"witnessed: the head of {size} entries that it names is not of this tree"
    with pytest.raises(CheckFailed, match=said):
        grown(tmp_path / "whole", len(log), log=log)
    with closing(grown(tmp_path / "home", KEPT).store) as store:
        root = store.root
        with pytest.raises(CheckFailed, match=said):
            store.append([log[KEPT]], WORLD.sign)
        assert store.root == root
        # The tree is that of the append; the head may lie before it.
        store.append([WORLD.witnessed(LOG[:size]).encode()], WORLD.sign)
    with monkeypatch.context() as patch:
        patch.setattr(entries.Entry, "require_of", lambda *_: None)
        with closing(grown(tmp_path / "lies", len(log), log=log).store) as store:
            tiles = FolderSource(write_tiles_of(store, tmp_path / "tiles"))
    checks = {check.name: check for check in verify_home(tmp_path / "lies").checks}
    assert (checks["entries"].ok, checks["entries"].detail) == (False, said)
    with pytest.raises(CheckFailed, match=said):
        audit_log(tiles, [], WORLD.run, full=True)


def test_nothing_that_is_final_here_is_given_up_whoever_sealed(tmp_path: Path) -> None:
    source = successor(tmp_path, handed())  # by three who have cosigned what follows all the same
    replica, leaves = grown(tmp_path / "home", *STEPS), list(LOG[:GIVEN_UP])
    for _ in range(2):
        leaves.append(WORLD.witnessed(leaves).encode())
        note = WORLD.sign(len(leaves), WORLD.head(leaves).root)
        replica.store.append_replica(leaves[-1:], note, replica.fold.beside)
        replica.fold.settle()
    assert replica.state.final == GIVEN_UP
    with closing(replica.store) as store:
        root = store.root
        with pytest.raises(CheckFailed, match=f"and {GIVEN_UP} are final here"):
            follow(replica, source)
        assert (store.root, store.term) == (root, 0)


def test_a_copy_that_came_in_few_steps_goes_on_from_between_two_of_its_heads(
    tmp_path: Path,
) -> None:
    log = list(LOG[:GIVEN_UP])
    log += [WORLD.witnessed(log).encode()]
    log += [WORLD.witnessed(log).encode()]
    shared = len(log)
    log += [WORLD.opened(ROUND + 5).encode()]
    first = handed(size=shared, of=shared, log=log)
    source = successor(tmp_path, first, KEPT, shared, log=log)
    # All that is final here came with one head, which is not of what goes on.
    replica = grown(tmp_path / "home", KEPT, len(log), log=log)
    assert KEPT < replica.state.final == GIVEN_UP < shared < replica.store.size
    with closing(replica.store) as store:
        note = source.get("checkpoint").decode()
        head = parse_checkpoint(note)
        assert common_size(store, SignedTree(source, head.size, head.root)) == shared
        assert shows_handover(source, note, store, replica.state)
        follow(replica, source)
        assert list(store.leaves(0, shared)) == log[:shared]
        assert (store.term, replica.state.final) == (1, GIVEN_UP)
    assert verify_home(tmp_path / "home").verified


class Told(FolderSource):
    """Notes what it is asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[str] = []

    def get(self, path: str, skip: int = 0) -> bytes:
        self.asked.append(path)
        return super().get(path, skip)


@pytest.mark.parametrize("known", [False, True])
async def test_of_a_term_that_nobody_known_here_has_sealed_nothing_is_read(
    tmp_path: Path, known: bool
) -> None:
    leader = key("a leader of its own")
    sealers = [key("a node of its own"), WORLD.members[0] if known else key("another one")]
    said = [entries.seal(each, WORLD.run, term=0, next=leader.key) for each in sealers]
    seals = [entries.open_seal(each.encode())[1] for each in said]
    first = entries.handover(leader, WORLD.run, term=1, seals=seals)
    folder = successor(tmp_path, first, by=leader).folder
    (folder / TERMS_PATH).write_bytes(said_by([Term(1, KEPT, leader.key)]))
    source = Told(folder)
    replica = grown(tmp_path / "home", *STEPS[:1])
    with closing(replica.store) as store:
        root = store.root
        with pytest.raises(CheckFailed) as caught:
            await replica.take_from(source, WORLD.run)
        assert (store.root, store.term) == (root, 0)
    said, read = caught.value.message, {path for path in source.asked if FOLDER in path}
    if known:  # then all is read, and the fold decides
        assert "does not begin term 1" in said
        assert len(read) > 1
    else:
        assert "is not sealed by the electors" in said
        assert read == {path_of(document_of(first.encode()))}


class Hanging(FolderSource):
    """Gives the newest head, and then nothing more."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked, self.closed = Event(), Event()

    def get(self, path: str, skip: int = 0) -> bytes:
        if path.startswith("tile/"):
            self.asked.set()
            assert self.closed.wait(30)
            raise Unreachable("it hung up")
        return super().get(path, skip)

    def close(self) -> None:
        self.closed.set()


async def test_one_that_is_slow_uses_up_nobody_elses_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artel.ledger.sync.replica.PATIENCE_S", 1.0)
    with closing(grown(tmp_path / "other", *STEPS).store) as store:
        source = FolderSource(write_tiles_of(store, tmp_path / "tiles"))
    replica = grown(tmp_path / "home", *STEPS[:1])
    with closing(replica.store) as store:
        with pytest.raises(Unreachable, match="did not give its ledger in time"):
            async with asyncio.timeout(20):
                await replica.take_from(Hanging(source.folder), WORLD.run)
        assert store.size == STEPS[0]
        slow = Hanging(source.folder)
        first = asyncio.create_task(replica.take_from(slow, WORLD.run))
        # Else the others may have given all before it is asked for anything.
        assert await asyncio.to_thread(slow.asked.wait, 20)
        async with asyncio.timeout(20):
            await asyncio.gather(*(replica.take_from(source, WORLD.run) for _ in range(2)))
        assert store.size == GIVEN_UP
        with pytest.raises(Unreachable, match="did not give its ledger in time"):
            await first


def test_nobody_goes_back_to_a_term_that_is_over(tmp_path: Path) -> None:
    source = successor(tmp_path, handed())
    replica = grown(tmp_path / "home", *STEPS[:4])
    follow(replica, source)
    with closing(replica.store) as store:
        rest = LOG[store.size : GIVEN_UP]
        head = WORLD.head([*LOG[: store.size], *rest])
        with pytest.raises(CheckFailed, match="in term 1 already"):
            store.append_replica(rest, WORLD.sign(GIVEN_UP, head.root), replica.fold.beside)
        # Nor does the leader of then get in as the leader of now.
        opened = forged(WORLD.opened(ROUND, 1), WORLD.coordinator)
        store.append([opened.encode()], SIGN, replica.fold.beside)
        assert [each.reason for each in replica.fold.settle()] == [reasons.WRONG_SIGNERS]


def test_a_home_cosigns_only_what_the_leader_signed_and_nothing_of_what_it_sealed(
    tmp_path: Path,
) -> None:
    source = successor(tmp_path, handed())
    with closing(HeadStore(tmp_path / HEADS_NAME)) as heads:
        replica, member = grown(tmp_path / "home", *STEPS[:4]), WORLD.members[0]
        witness = Witness(heads, member, witness_name(member.peer_id), replica.keys_of)
        old = replica.store.note_at(230)
        heads.seal(WORLD.run, 0)
        assert heads.sealed(WORLD.run) == (0, "")
        with pytest.raises(CheckFailed, match="sealed"):
            witness.cosign(replica.store.latest_note, replica.store)
        follow(replica, source)
        with closing(replica.store) as store:
            witness.cosign(store.latest_note, store)
            with pytest.raises(CheckFailed, match="not a log that is witnessed here"):
                witness.cosign(old, store)
            by_the_first = sign_checkpoint(WORLD.coordinator, store.origin, store.size, store.root)
            with pytest.raises(CheckFailed):
                witness.cosign(by_the_first, store)

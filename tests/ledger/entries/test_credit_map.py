"""The credit map: one root for all accounts, and what proves one of them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.ledger.entries.credit_map import MAX_PAGE_BYTES, CreditMap, look_up
from artel.protocol.errors import CheckFailed

AMOUNTS = st.tuples(st.integers(0, 1 << 100), st.integers(0, 1 << 100))
# Names that share beginnings, as somebody could choose theirs.
NAMES = st.integers(0, 1 << 16).map(lambda number: hashlib.sha256(b"%d" % number).hexdigest())
ALIKE = st.integers(0, 200).map(lambda number: "ab" * 30 + f"{number:04x}")


def name(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(NAMES | ALIKE, AMOUNTS, max_size=90), max_size=4),
)
def test_the_root_follows_from_what_accounts_have_and_from_nothing_else(
    steps: list[dict[str, tuple[int, int]]],
) -> None:
    grown, whole = CreditMap(), dict[str, tuple[int, int]]()
    for step in steps:
        before = grown.root
        other = grown.changed(step)
        assert grown.root == before
        grown, whole = other, whole | step
    assert grown == CreditMap().changed(whole) == CreditMap.decode(grown.encode())
    pages = {wanted: page.data for wanted, page in grown.pages.items()}
    assert all(len(page) <= MAX_PAGE_BYTES for page in pages.values())
    total = tuple(sum(credits[side] for credits in whole.values()) for side in (0, 1))
    for account in {*whole, name(-1), "ab" * 30 + "ffff"}:
        found = look_up(grown.root, account, pages.__getitem__)
        assert (found.credits, found.total) == (whole.get(account), total)


def test_a_changed_account_leaves_the_pages_of_others_alone() -> None:
    before = CreditMap().changed({name(number): (number, 0) for number in range(5000)})
    after = before.changed({name(7): (7, 1)})
    assert len(after.pages.keys() - before.pages.keys()) == 3  # root, fork, accounts
    assert before.changed({name(7): (7, 0)}) == before != after


def test_a_page_that_is_not_the_one_that_was_asked_for_is_refused() -> None:
    found = CreditMap().changed({name(number): (number, 0) for number in range(100)})
    pages = {wanted: page.data for wanted, page in found.pages.items()}
    for wanted, page in pages.items():
        for damaged in (page[:-1], bytes([page[0] ^ 1]) + page[1:], b""):
            with pytest.raises(CheckFailed):
                for number in range(100):
                    look_up(found.root, name(number), (pages | {wanted: damaged}).__getitem__)


def test_an_account_whose_name_looks_like_the_end_of_a_row_has_one_row() -> None:
    mean = name(1)[32:] + f"{7:032x}"
    before = CreditMap().changed({name(1): (7, 0), mean: (1, 1)})
    assert before.changed({mean: (2, 2)}) == CreditMap().changed({name(1): (7, 0), mean: (2, 2)})


def test_a_root_of_what_is_no_credit_map_is_refused() -> None:
    """Coordinators choose what they sign: its hash holds, whatever it is."""
    account = bytes.fromhex(name(1))
    mine = account + (7).to_bytes(32)
    below = b"\0" + mine
    fork = b"\1" + (hashlib.sha256(below).digest() + (8).to_bytes(32)) * 64
    for page in (b"", b"\2", b"\0" + mine[1:], b"\1", b"\1" + mine, b"\0" + mine * 65, fork):
        pages = {hashlib.sha256(data).hexdigest(): data for data in (page, below)}
        with pytest.raises(CheckFailed):
            look_up(hashlib.sha256(page).hexdigest(), name(1), pages.__getitem__)


def test_no_page_stands_in_two_places_of_a_map() -> None:
    """A coordinator that lies could else sign a map of few pages that takes for ever to walk."""
    pages = {}

    def add(data: bytes) -> bytes:
        pages[hashlib.sha256(data).hexdigest()] = data
        return hashlib.sha256(data).digest()

    top, number = add(b"\0" + bytes.fromhex(name(1)) + (7).to_bytes(32)), 7
    for _ in range(7):
        top, number = add(b"\1" + (top + number.to_bytes(32)) * 64), 64 * number
    with pytest.raises(CheckFailed, match="cannot be where it is"):
        look_up(top.hex(), 64 * "f", pages.__getitem__)

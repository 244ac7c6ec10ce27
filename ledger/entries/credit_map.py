"""The credit map: a hash over all accounts' credit, by which one account's part can be proven.

The map is cut into **pages**. A page is a byte and at most 64 rows of 64 bytes: a name (32 bytes),
what has vested and what is pending (16 bytes each, big-endian). Up to 64 accounts are one page, of
a byte 0 and a row for each, ascending. More of them are a byte 1 and 64 rows: of the accounts whose
names, cut into 6 bits each, go on with 0, 1, ... 63 the name of their page and what they have
together, and zeros where there are none. The name of a page is its SHA-256, and that of the page of
all accounts is the **credit root**. So the pages from the root to an account prove what it has, of
how much in all; or that there is no such account. (A Merkle sum tree with RFC 6962's domain
separation; branching as in Ethereum's Merkle Patricia trie. It branches 64 ways, not 16: a round
changes a few accounts here and there, and pays for every page on the way to each.)

A map never changes. Another one that differs in a few accounts shares all other pages with it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple

from pydantic import PlainSerializer, PlainValidator

from artel.protocol.errors import CheckFailed

PAGE_ROWS = 64
DIGITS, DIGIT_BITS = 43, 6
"""Of a name: its bits and two zeros."""
NAME_BYTES, AMOUNT_BYTES = 32, 16
NUMBER_BYTES = 2 * AMOUNT_BYTES
ROW_BYTES = NAME_BYTES + NUMBER_BYTES
MAX_PAGE_BYTES = 1 + PAGE_ROWS * ROW_BYTES
EMPTY = bytes(ROW_BYTES)
"""The row of no accounts."""

Row = tuple[bytes, int]
"""A name and its :func:`_number`."""


class Credits(NamedTuple):
    """What an account has, or several together."""

    vested: int
    pending: int


class Page(NamedTuple):
    """A page and what is below it; ``pages`` are as many as it has rows, or none."""

    name: bytes  # (32,)
    number: int
    """What all accounts on it have together, as :func:`_number`."""
    data: bytes
    pages: tuple[Page | None, ...] = ()


def _page(data: bytes, number: int, pages: tuple[Page | None, ...] = ()) -> Page:
    return Page(hashlib.sha256(data).digest(), number, data, pages)


NOBODY = _page(b"\0", 0)
FORK = _page(b"\1" + EMPTY * PAGE_ROWS, 0, (None,) * PAGE_ROWS)
"""Pages of nobody, to be filled."""


def _number(row: bytes | bytearray) -> int:
    """Both amounts of a row as one number: sums of such numbers are sums of both."""
    return int.from_bytes(row[NAME_BYTES:])


def _credits(number: int) -> Credits:
    return Credits(number >> 8 * AMOUNT_BYTES, number & (1 << 8 * AMOUNT_BYTES) - 1)


class CreditMap:
    """Account (hex) to credit, as of one entry of a ledger."""

    def __init__(self, page: Page | None = None) -> None:
        self._page = NOBODY if page is None else page

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CreditMap) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    @property
    def root(self) -> str:
        """The credit root, in hex."""
        return self._page.name.hex()

    def changed(self, credits: Mapping[str, tuple[int, int]]) -> CreditMap:
        """The map with other credit of these accounts; costs what lies on the way to them."""
        rows = [
            (bytes.fromhex(account), vested << 8 * AMOUNT_BYTES | pending)
            for account, (vested, pending) in credits.items()
        ]
        return CreditMap(_changed(self._page, rows, 0)) if rows else self

    @cached_property
    def pages(self) -> Mapping[str, Page]:
        """Every page by its name (hex)."""
        found, waiting = dict[str, Page](), [self._page]
        while waiting:
            page = waiting.pop()
            found[page.name.hex()] = page
            waiting += [other for other in page.pages if other is not None]
        return found

    def encode(self) -> str:
        """Text that :meth:`decode` reads back."""
        return b"".join(page.data[1:] for page in self.pages.values() if not page.pages).hex()

    @classmethod
    def decode(cls, text: str) -> CreditMap:
        """Inverse of :meth:`encode`; not a decoder for what others wrote."""
        return cls(_changed(NOBODY, _named(bytes.fromhex(text)), 0))


def _changed(page: Page, rows: list[Row], depth: int) -> Page:
    """The page with these rows in it.

    :param depth: digits that the accounts on it have in common
    """
    if page.pages:
        return _spread(page, rows, depth)
    if len(rows) > PAGE_ROWS:
        return _spread(FORK, list((dict(_named(page.data[1:])) | dict(rows)).items()), depth)
    data, total = page.data, page.number
    for name, number in rows:
        row = name + number.to_bytes(NUMBER_BYTES)
        at, after = _place(data, name)
        total += number - int.from_bytes(data[at + NAME_BYTES : after])
        data = data[:at] + row + data[after:]
    if len(data) <= MAX_PAGE_BYTES:
        return _page(data, total)
    return _spread(FORK, _named(data[1:]), depth)


def _spread(page: Page, rows: list[Row], depth: int) -> Page:
    """As :func:`_changed`, for a page of pages."""
    parts: dict[int, list[Row]] = {}
    for row in rows:
        parts.setdefault(_digit(row[0], depth), []).append(row)
    data, total, pages = bytearray(page.data), page.number, list(page.pages)
    for digit, part in parts.items():
        before = pages[digit] or NOBODY
        pages[digit] = after = _changed(before, part, depth + 1)
        total += after.number - before.number
        at = 1 + digit * ROW_BYTES
        data[at : at + ROW_BYTES] = after.name + after.number.to_bytes(NUMBER_BYTES)
    return _page(bytes(data), total, tuple(pages))


def _place(data: bytes, name: bytes) -> tuple[int, int]:
    """From where to where the row with a name is in a page, or would be."""
    at = data.find(name, 1)
    while at >= 0 and at % ROW_BYTES != 1:  # the end of a row can look like a name
        at = data.find(name, at + 1)
    if at >= 0:
        return at, at + ROW_BYTES
    at = 1 + ROW_BYTES * bisect_left(list(_rows(data[1:])), name)
    return at, at


def _digit(name: bytes, depth: int) -> int:
    return int.from_bytes(name) << 2 >> DIGIT_BITS * (DIGITS - 1 - depth) & PAGE_ROWS - 1


def _named(data: bytes) -> list[Row]:
    return [(row[:NAME_BYTES], _number(row)) for row in _rows(data)]


def _rows(data: bytes) -> Iterator[bytes]:
    return (data[at : at + ROW_BYTES] for at in range(0, len(data), ROW_BYTES))


@dataclass(frozen=True)
class Found:
    """What a credit root proves of one account; ``credits`` is None when there is none."""

    credits: Credits | None
    total: Credits
    """Of all accounts."""


def look_up(root: str, account: str, get: Callable[[str], bytes]) -> Found:
    """What an account has by a credit root.

    :param get: the page with a name (hex); what it gives is checked
    :raises CheckFailed: it gives something else, or what the root stands for is no credit map
    """
    name, place = bytes.fromhex(account), _Place(bytes.fromhex(root))
    data = place.read(get)
    total = _credits(sum(map(_number, _rows(data[1:]))))
    while data[:1] == b"\1":
        digit = _digit(name, place.depth)
        row = data[1 + digit * ROW_BYTES :][:ROW_BYTES]
        if row == EMPTY:
            return Found(None, total)
        place = place.below(digit, row)
        data = place.read(get)
    mine = [_credits(_number(row)) for row in _rows(data[1:]) if row[:NAME_BYTES] == name]
    return Found(mine[0] if mine else None, total)


@dataclass(frozen=True)
class _Place:
    """A page that is to be read, and what must be on it; no page fits two places of a map."""

    name: bytes
    depth: int = 0
    digits: int = 0
    """Those ``depth`` that its accounts begin with."""
    number: int | None = None
    """What they have together, by the page above."""

    def below(self, digit: int, row: bytes) -> _Place:
        """The page that a row of this one stands for."""
        digits = self.digits << DIGIT_BITS | digit
        return _Place(row[:NAME_BYTES], self.depth + 1, digits, _number(row))

    def read(self, get: Callable[[str], bytes]) -> bytes:
        """The page.

        :raises CheckFailed: it is another one, or none that could be here
        """
        data = get(self.name.hex())
        if hashlib.sha256(data).digest() != self.name:
            raise self._refused("is another one")
        count, rest = divmod(len(data) - 1, ROW_BYTES)
        rows = list(_rows(data[1:]))
        if rest or data[:1] not in (b"\0", b"\1") or count > PAGE_ROWS:
            raise self._refused("has no form of one")
        if data[:1] == b"\1":
            fits = count == PAGE_ROWS and self.depth < DIGITS
        else:
            names = [row[:NAME_BYTES] for row in rows]
            shift = 8 * NAME_BYTES + 2 - DIGIT_BITS * self.depth
            fits = all(int.from_bytes(name) << 2 >> shift == self.digits for name in names)
            fits = fits and names == sorted(set(names)) and (bool(names) or not self.depth)
        if not fits:
            raise self._refused("cannot be where it is")
        if self.number not in (None, sum(map(_number, rows))):
            raise self._refused("has another sum")
        return data

    def _refused(self, why: str) -> CheckFailed:
        return CheckFailed(f"the page {self.name.hex()} of the credit map {why}")


KeptMap = Annotated[
    CreditMap, PlainValidator(CreditMap.decode), PlainSerializer(CreditMap.encode, str)
]
"""A map as part of a state at rest."""

"""The state of a run: its parameters as one flat fp32 vector, and the file that holds them.

A :class:`Layout` says which tensor lies where in the flat vector; it is fixed by the manifest. A
**state** is the parameters after some round, plus the outer momentum buffer when the run has one.
Its file has exactly one encoding, so the state root (the content id of the file's bytes) names the
numbers themselves, bit for bit:

======================  ===========================================================================
bytes 0..4095           ``ARTELST1``, u32 big-endian length, canonical JSON header, zero padding
4096 ..                 parameters, N little-endian fp32
behind them             outer momentum, N little-endian fp32, only when ``buffers`` names it
======================  ===========================================================================

The header fills one page so that the arrays can be memory-mapped page-aligned.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from artel.protocol import canonical, files, merkle
from artel.protocol.content import CHUNK_BYTES
from artel.protocol.errors import CheckFailed, DecodeError, ResourceError
from artel.protocol.run_config import MAX_PARAMETERS
from artel.protocol.schema import Digest, Record, parsed

if TYPE_CHECKING:
    from artel.protocol.run_config import OuterSection

Vector = npt.NDArray[np.float32]
"""A flat fp32 vector, shape (N,): parameters, momentum, a pseudo-gradient or an update."""

MAX_TENSORS = 1 << 16
MAX_LAYOUT_BYTES = 16 << 20
MAX_DIMENSIONS = 8
MAX_NAME = 256

MAGIC = b"ARTELST1"
HEADER_BYTES = 4096
_LENGTH = struct.Struct(">I")
_JSON_AT = len(MAGIC) + _LENGTH.size

_PIECE = 1 << 18  # elements looked at in one go: 1 MiB of fp32 stays in the cache
_HASHERS = 4  # threads at most


@dataclass(frozen=True)
class Tensor:
    """One named tensor: elements ``offset .. offset + size`` of the flat vector, C order."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int


class _Written(Record):
    """A layout as canonical JSON; offsets follow from the order."""

    tensors: Annotated[tuple[tuple[str, tuple[int, ...]], ...], Field(max_length=MAX_TENSORS)]


@dataclass(frozen=True)
class Layout:
    """The ordered tensors of the flat vector, without gaps."""

    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, shapes: Iterable[tuple[str, Sequence[int]]]) -> Layout:
        """Lay named shapes out one behind the other.

        :raises DecodeError: no tensors, too many, a name twice, a dimension below 1
        """
        tensors: list[Tensor] = []
        names: set[str] = set()
        offset = 0
        for name, shape in shapes:
            dimensions = tuple(int(d) for d in shape)
            if not 0 < len(name) <= MAX_NAME or name in names:
                raise DecodeError(f"tensor name {name[:64]!r} is empty, too long or used twice")
            if len(dimensions) > MAX_DIMENSIONS or any(d < 1 for d in dimensions):
                raise DecodeError(f"tensor {name[:64]!r} has the impossible shape {dimensions}")
            size = math.prod(dimensions)
            names.add(name)
            tensors.append(Tensor(name, dimensions, offset, size))
            offset += size
            if len(tensors) > MAX_TENSORS or offset > MAX_PARAMETERS:
                raise DecodeError(
                    f"layout has more than {MAX_TENSORS} tensors or {MAX_PARAMETERS} parameters"
                )
        if not tensors:
            raise DecodeError("layout has no tensors")
        return cls(tuple(tensors))

    @classmethod
    def decode(cls, data: bytes) -> Layout:
        """The layout of its canonical JSON.

        :raises DecodeError: on anything but the canonical encoding of a valid layout
        """
        return cls.of(parsed(_Written, data, "layout", MAX_LAYOUT_BYTES).tensors)

    def encode(self) -> bytes:
        """Canonical JSON: ``{"tensors": [[name, shape], ...]}``."""
        return canonical.dumps({"tensors": [[t.name, list(t.shape)] for t in self.tensors]})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hex."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def parameters(self) -> int:
        """N, the length of the flat vector."""
        last = self.tensors[-1]
        return last.offset + last.size

    def require(self, vector: Vector) -> None:
        """Check that ``vector`` is a flat fp32 vector of this layout.

        :raises CheckFailed: another dtype or shape
        """
        if vector.dtype != np.float32 or vector.shape != (self.parameters,):
            raise CheckFailed(
                f"vector has {vector.dtype} {vector.shape}, "
                f"the layout wants float32 ({self.parameters},)"
            )


@dataclass(frozen=True, eq=False)
class State:
    """The numbers after ``round`` closed rounds (0 = initial state)."""

    round: int
    layout_digest: str
    params: Vector  # (N,)
    momentum: Vector | None  # (N,), or None when the run's outer momentum is 0


class StateHeader(Record):
    """What the first page of a state file says."""

    round: Annotated[int, Field(ge=0, le=canonical.MAX_INTEGER)]
    layout: Digest
    """Digest of the layout."""
    params: Annotated[int, Field(ge=1, le=MAX_PARAMETERS)]
    """N."""
    buffers: Annotated[tuple[Literal["momentum"], ...], Field(max_length=1)]

    @property
    def file_bytes(self) -> int:
        """Exact size of the whole file."""
        return HEADER_BYTES + (1 + len(self.buffers)) * 4 * self.params


def all_finite(vector: Vector) -> bool:
    """Whether no element is NaN or infinite; needs no second copy of the vector."""
    return all(
        bool(np.isfinite(vector[start : start + _PIECE]).all())
        for start in range(0, len(vector), _PIECE)
    )


def write_state(path: Path, state: State, *, durable: bool = True) -> str:
    """Write a state file so that ``path`` holds either the old bytes or all of the new ones.

    :param durable: also after a power cut; without it the caller sees to that
    :returns: the state root, computed on the way
    :raises ResourceError: the disk is full or refuses the write
    :raises CheckFailed: the state is not finite or its arrays do not fit together
    """
    _require_sound(state)
    parts = _file_parts(state)
    # Hashing takes longer than writing, and both let other threads run.
    with (
        files.told(path, _header_of(state).file_bytes),
        ThreadPoolExecutor(_HASHERS) as pool,
        files.replacing(path, durable=durable) as file,
    ):
        hashes = [pool.submit(_hash_of, pieces) for pieces in _chunks(parts)]
        for part in parts:
            file.write(part)
        root = merkle.root(each.result() for each in hashes)
    return root.hex()


def read_state(source: Path | BufferedReader, layout: Layout) -> State:
    """Read a state file of a run with this layout.

    :param source: its path, or the file itself, which stays open

    :raises DecodeError: another layout, wrong length, not the canonical encoding, not finite
    :raises ResourceError: the file cannot be read
    """
    with _state_file(source, layout) as (name, file, header):
        arrays: list[Vector] = []
        for _ in range(1 + len(header.buffers)):
            array = np.empty(header.params, "<f4")
            if file.readinto(array.view(np.uint8).data) != array.nbytes:
                raise DecodeError(f"the state {name} ended early")
            arrays.append(array.astype(np.float32, copy=False))
        if not all(all_finite(array) for array in arrays):
            raise DecodeError(f"the state {name} holds NaN or infinity")
    return State(header.round, header.layout, arrays[0], arrays[1] if header.buffers else None)


def map_state(path: Path, layout: Layout) -> State:
    """A state without its outer momentum, whose parameters stay in the file: they take no memory.

    The file must not be written to meanwhile; it may be removed.

    :raises DecodeError: as :func:`read_state`
    :raises ResourceError: the file cannot be read
    """
    with _state_file(path, layout) as (name, file, header):
        # Private to this process; writable only because torch warns of memory that is not.
        params = np.memmap(file, "<f4", "c", HEADER_BYTES, (header.params,))
        if not all_finite(params):
            raise DecodeError(f"the state {name} holds NaN or infinity")
    return State(header.round, header.layout, params.view(np.ndarray), None)


@contextmanager
def _state_file(
    source: Path | BufferedReader, layout: Layout
) -> Iterator[tuple[str, BufferedReader, StateHeader]]:
    """A state file that is open behind its header, which is checked; with its name."""
    name = Path(source if isinstance(source, Path) else source.name).name
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
            header = decode_header(file.read(HEADER_BYTES))
            if (header.layout, header.params) != (layout.digest, layout.parameters):
                raise DecodeError(f"the state {name} belongs to a model of another layout")
            size = os.fstat(file.fileno()).st_size
            if size != header.file_bytes:  # before any memory is taken
                raise DecodeError(
                    f"the state {name} has {size} bytes, {header.file_bytes} expected"
                )
            yield name, file, header
    except OSError as error:
        raise ResourceError(
            f"cannot read the state {name}: {error.strerror}", "check the disk and --home"
        ) from None


def state_root(state: State) -> str:
    """Content id of the state's file bytes, without writing them.

    For a file on disk this equals :func:`protocol.content.file_content_id`.

    :raises CheckFailed: the state is not finite or its arrays do not fit together
    """
    _require_sound(state)
    return merkle.root(map(_hash_of, _chunks(_file_parts(state)))).hex()


def state_rest(state: State) -> bytes:
    """What is needed beside the parameters to tell their state root: the header, what follows the
    parameters in their last chunk, and the hashes of all chunks behind that."""
    _require_sound(state)
    parts = _file_parts(state)
    end = HEADER_BYTES + parts[1].nbytes
    behind = b"".join(parts[2:])
    border = -end % CHUNK_BYTES
    hashes = (_hash_of(pieces) for pieces in _chunks([memoryview(behind)[border:]]))
    return b"".join((parts[0], behind[:border], *hashes))


def root_with_rest(params: Vector, rest: bytes) -> str:
    """The state root of parameters, (N,), with what :func:`state_rest` gave.

    :raises DecodeError: this is the rest of no state with so many parameters
    """
    header = decode_header(rest[:HEADER_BYTES])
    end = HEADER_BYTES + 4 * header.params
    border = min(-end % CHUNK_BYTES, header.file_bytes - end)
    behind = -(-(header.file_bytes - end - border) // CHUNK_BYTES) * merkle.HASH_BYTES
    if params.shape != (header.params,) or len(rest) != HEADER_BYTES + border + behind:
        raise DecodeError(f"this is not the rest of a state with {params.size:,} parameters")
    cut = HEADER_BYTES + border
    numbers = np.ascontiguousarray(params, "<f4").view(np.uint8).data
    parts = [memoryview(rest)[:HEADER_BYTES], numbers, memoryview(rest)[HEADER_BYTES:cut]]
    hashes = [rest[at : at + merkle.HASH_BYTES] for at in range(cut, len(rest), merkle.HASH_BYTES)]
    return merkle.root((*map(_hash_of, _chunks(parts)), *hashes)).hex()


def state_bytes(parameters: int, outer: OuterSection) -> int:
    """Exact size of a run's state files."""
    return HEADER_BYTES + (2 if outer.momentum else 1) * 4 * parameters


def encode_header(header: StateHeader) -> bytes:
    """The first page of a state file."""
    text = canonical.dumps(header.model_dump(mode="json"))
    return (MAGIC + _LENGTH.pack(len(text)) + text).ljust(HEADER_BYTES, b"\0")


def decode_header(page: bytes) -> StateHeader:
    """Decode the first page of a state file.

    :raises DecodeError: on anything but the canonical encoding of a valid header
    """
    if len(page) != HEADER_BYTES or not page.startswith(MAGIC):
        raise DecodeError("not a state file")
    (length,) = _LENGTH.unpack_from(page, len(MAGIC))
    if length > HEADER_BYTES - _JSON_AT:
        raise DecodeError("the state file's header is longer than its page")
    if any(page[_JSON_AT + length :]):
        raise DecodeError("the state file's header is not padded with zeros")
    text = page[_JSON_AT : _JSON_AT + length]
    return parsed(StateHeader, text, "the state file's header", HEADER_BYTES)


def _header_of(state: State) -> StateHeader:
    return StateHeader(
        round=state.round,
        layout=state.layout_digest,
        params=len(state.params),
        buffers=() if state.momentum is None else ("momentum",),
    )


def _arrays(state: State) -> list[Vector]:
    return [state.params] if state.momentum is None else [state.params, state.momentum]


def _require_sound(state: State) -> None:
    """Refuse to write what :func:`read_state` would refuse to read."""
    for array in _arrays(state):
        if array.dtype != np.float32 or array.shape != (len(state.params),):
            raise CheckFailed("the state's arrays are not flat fp32 vectors of one length")
        if not all_finite(array):
            raise CheckFailed(
                f"the state of round {state.round} holds NaN or infinity",
                "the run diverged: lower the inner or the outer learning rate",
            )


def _file_parts(state: State) -> list[memoryview]:
    """The file's bytes: header and arrays, as they are in memory where that is little-endian."""
    return [
        memoryview(encode_header(_header_of(state))),
        *(np.ascontiguousarray(array, "<f4").view(np.uint8).data for array in _arrays(state)),
    ]


def _chunks(parts: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The bytes in content chunks of 1 MiB, each as the pieces that it is made of; no copies."""
    chunk: list[memoryview] = []
    room = CHUNK_BYTES
    for part in parts:
        while part:
            piece, part = part[:room], part[room:]
            chunk.append(piece)
            room -= len(piece)
            if not room:
                yield chunk
                chunk, room = [], CHUNK_BYTES
    if chunk:
        yield chunk


def _hash_of(pieces: Sequence[memoryview]) -> bytes:
    """Leaf hash of a chunk."""
    return merkle.leaf_hash(*pieces)

"""Frames between the daemon and its trainer: a 4-byte big-endian length, then a JSON object.

The two ends are one program on one machine and share a socket pair that nobody else can reach. The
limit on a frame guards against a torn stream, not against an attacker; tensors never pass here.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator
from typing import Any

from artel.protocol.errors import ArtelError, DecodeError

MAX_FRAME_BYTES = 64 << 20
"""The longest frame lists a round's windows, about 10 bytes each: room for millions of them."""
LENGTH = struct.Struct(">I")

Message = dict[str, Any]


class TrainerError(ArtelError):
    """The trainer refused or failed a command; it lives on and its state is as before.

    ``code`` is stable and short:

    - ``cancelled``: a cancel came; ``timeout``: the caller's limit passed
    - ``disk_full``, ``disk``: a file could not be written; ``out_of_memory``
    - ``bad_blob``: a listed contribution does not count; ``node`` names whose it is
    - ``bad_data``: a shard is missing, too short or holds a token outside the vocabulary
    - ``bad_state``, ``bad_manifest``: the file is damaged or belongs to another run
    - ``wrong_round``: the command does not fit the current state; ``not_loaded``: no run yet
    - ``diverged``: the loss or the outcome is not finite; ``no_device``; ``bad_request``
    - ``failed``: any other refusal; ``crash``: a bug, with its traceback in the log
    """

    def __init__(self, code: str, message: str, hint: str = "", node: str = "") -> None:
        super().__init__(message, hint)
        self.code = code
        self.node = node


@contextlib.contextmanager
def coded(code: str, kind: type[ArtelError] = ArtelError) -> Iterator[None]:
    """Errors of one kind in the block are failures of the command, with this code."""
    try:
        yield
    except TrainerError:
        raise
    except kind as error:
        raise TrainerError(code, error.message, error.hint) from None


def encode(message: Message) -> bytes:
    """One frame.

    :raises TrainerError: ``bad_request`` when the message is too large or not JSON
    """
    try:
        body = json.dumps(message, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise TrainerError("bad_request", f"message has no JSON form: {error}") from None
    if len(body) > MAX_FRAME_BYTES:
        raise TrainerError(
            "bad_request",
            f"message of {len(body)} bytes, at most {MAX_FRAME_BYTES} pass to the trainer",
            "lower rounds.inner_steps or optimizer.batch_size",
        )
    return LENGTH.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """Body length that a frame's first four bytes announce.

    :raises DecodeError: when it is beyond the limit
    """
    (length,) = LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise DecodeError(f"frame of {length} bytes, at most {MAX_FRAME_BYTES} allowed")
    return int(length)


def decode(body: bytes) -> Message:
    """The message of a frame's body.

    :raises DecodeError: when it is no JSON object
    """
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise DecodeError("the frame is not JSON") from None
    if not isinstance(message, dict):
        raise DecodeError("the frame is not a JSON object")
    return message

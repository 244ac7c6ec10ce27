"""Messages between the daemon and its trainer: JSON objects, each on a line of its own.

The two ends are one program on one machine and share a socket pair that nobody else can reach. The
limit on a line guards against a mistake, not against an attacker; tensors never pass here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from artel.protocol.errors import ArtelError, DecodeError

MAX_BYTES = 64 << 20
"""The longest message lists a round's windows, about 10 bytes each: room for millions of them."""

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
    """A message as its line.

    :raises TrainerError: ``bad_request`` when the message is too large or not JSON
    """
    try:
        body = json.dumps(message, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise TrainerError("bad_request", f"message has no JSON form: {error}") from None
    if len(body) >= MAX_BYTES:
        raise TrainerError(
            "bad_request",
            f"message of {len(body)} bytes, at most {MAX_BYTES} pass to the trainer",
            "lower rounds.inner_steps or optimizer.batch_size",
        )
    return body + b"\n"


def decode(line: bytes) -> Message:
    """The message of a line.

    :raises DecodeError: when it is no JSON object
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise DecodeError("the message is not JSON") from None
    if not isinstance(message, dict):
        raise DecodeError("the message is not a JSON object")
    return message

"""Messages about work that is done again: a newcomer's trial, and where an audit's steps differ."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from artel.protocol.messages import KIB, Count, Message
from artel.protocol.schema import Digest

Ticket = Annotated[bytes, Field(max_length=128)]
TRIAL_STEPS = 8
"""Of a contribution, that a newcomer repeats at most: machines of any class agree in so few."""
TRIAL_FAILED, TRIAL_OVER = "trial_failed", "trial_over"
"""Codes of refusals: what came out is something else; it cannot be answered (any more)."""


class Trial(Message):
    """Not admitted yet: repeat the first ``steps`` steps of a ``contribution`` (an entry's id), and
    say with :class:`Repeated` what came out. ``ticket`` comes back with the answer."""

    KIND = "trial"
    contribution: Digest
    steps: Annotated[int, Field(ge=2, le=TRIAL_STEPS)]
    ticket: Ticket


class Repeated(Message):
    """The fingerprints of the steps of a trial (:mod:`protocol.fingerprints`)."""

    KIND = "repeated"
    LIMIT = 6 * KIB
    run: Digest
    contribution: Digest
    ticket: Ticket
    rows: Annotated[bytes, Field(max_length=512 * TRIAL_STEPS)]


class GetDifference(Message):
    """An auditor that has committed to its verdict asks where the steps that it made, whose
    fingerprints are the content ``rows``, differ from those of the node that it audits; and says
    the class of its machine."""

    KIND = "get_difference"
    rows: Digest
    hardware: Annotated[str, StringConstraints(pattern=r"^[ -~]{0,64}$")]


class Difference(Message):
    """The first step that differs, from 1, and the round of its contribution; 0 and 0: none."""

    KIND = "difference"
    round: Count
    step: Count

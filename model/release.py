"""What a release tells of its model beside the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from artel.ledger.entries.records import Amendment
from artel.model.evaluation import Evaluation
from artel.model.pretrained import LoadedModel

MAX_ROUNDS = 1_000_000


@dataclass
class LossRow:
    """What nodes reported of a round: nats per token, numbers and no facts.

    ``validation`` is the loss of the state that the round starts from, ``loss`` that of training.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="ignore", allow_inf_nan=False)

    round: Annotated[int, Field(ge=0, le=MAX_ROUNDS)]
    validation: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Release:
    """What a release tells of its model beside the numbers."""

    loaded: LoadedModel
    shares: dict[str, Any]
    """Who owns what (:func:`ledger.fold.holdings.shares_facts`)."""
    size: int
    """Entries of the ledger that this is by; its tree's root in hex; how many are final."""
    head: str
    final: int
    total: int
    """Rounds of the run."""
    amendments: list[Amendment]
    """What the organiser has changed of the manifest since."""
    tokens: int
    """That accepted contributions were trained on."""
    losses: list[LossRow]
    evaluations: list[Evaluation]
    sample: str
    owner: str
    """Key that vouches for the signer, in hex; "" for none."""
    signed: bool

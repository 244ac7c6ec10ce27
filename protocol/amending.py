"""What the organiser may change in a run that goes on, and the configuration that comes of it.

An entry ``amended`` (:mod:`ledger.entries.kinds.amended`) says of some settings which values they
have from a round on. Values are texts, since entries of the ledger hold no fractions. What a state,
a contribution or a credit that lies behind was made of never changes: neither the model, nor what
is exchanged and how, nor how much work a round asks for, nor how credit is counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from artel.protocol.run_config import OptimizerSection, RoundsSection, RunConfig
from artel.protocol.schema import Section

PAUSED = "paused"
"""While it is "true" no round is opened."""
TOTAL = "rounds.total"
_SECTIONS: dict[str, type[Section]] = {"optimizer": OptimizerSection, "rounds": RoundsSection}
AMENDABLE = (
    PAUSED,
    *(f"optimizer.{name}" for name in ("lr", "schedule", "final_lr_fraction")),
    TOTAL,
    *(f"rounds.{name}" for name in ("min_nodes", "max_nodes", "quorum")),
    *(f"rounds.{name}_s" for name in ("deadline", "grace", "reveal", "settle")),
)
"""Settings by their names in the run file; the rate of Muon follows ``optimizer.lr`` in
proportion."""
VALUE = re.compile(r"[a-z]{1,16}|(0|[1-9][0-9]{0,6})(\.[0-9]{1,12})?", re.ASCII)
"""How a value is written: a word, or a decimal number without an exponent."""


def value_of(setting: str, text: str) -> Any:
    """The value that a text stands for, within the bounds of the run file.

    :raises ValueError: nothing like that can be amended, or it cannot have this value
    """
    if setting not in AMENDABLE:
        raise ValueError(f"{setting[:40]} cannot be changed while the run goes on")
    if not VALUE.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is neither a word nor a plain decimal number")
    if setting == PAUSED:
        if text not in ("true", "false"):
            raise ValueError(f"{PAUSED} is true or false")
        return text == "true"
    section, _, name = setting.partition(".")
    value = json.loads(text) if text[0].isdigit() else text
    try:
        return getattr(_SECTIONS[section].model_validate({name: value}), name)
    except ValidationError as error:
        raise ValueError(f"{setting} = {text}: {error.errors()[0]['msg']}") from None


def amended(config: RunConfig, changes: Mapping[str, str]) -> RunConfig:
    """The configuration with these changes, which a ledger has taken."""
    updates: dict[str, dict[str, Any]] = {}
    for setting, text in changes.items():
        if setting != PAUSED:
            section, _, name = setting.partition(".")
            updates.setdefault(section, {})[name] = value_of(setting, text)
    return config.model_copy(
        update={
            section: getattr(config, section).model_copy(update=fields)
            for section, fields in updates.items()
        }
    )

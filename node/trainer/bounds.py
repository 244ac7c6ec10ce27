"""What a manifest asks this machine to build, found out before it is built.

A manifest is a stranger's words: its configuration may describe another model than its numbers
say, or one whose building never ends. So the model is first made without memory (torch's meta
device), and whatever is built for the first time has a bound on memory; how long it may take is
said with the command (:mod:`node.trainer.orders`).
"""

from __future__ import annotations

from artel.node.trainer.channel import TrainerError
from artel.node.trainer.orders import Weighed
from artel.protocol import model
from artel.protocol.manifest import Manifest
from artel.protocol.rlimit import at_most

WEIGHING_BYTES = 1 << 30
"""For the objects of a model whose parameters take none."""
BUILDING_BYTES = 2 << 30
"""Beside what a model takes that is built: threads, and what drawing its first numbers takes."""
_COPIES = 3
"""Of the parameters, while the first numbers are drawn: with temporary ones of the largest."""


def weigh(manifest: Manifest) -> Weighed:
    """How large the model of a manifest is, by its configuration.

    :raises TrainerError: ``failed``, when that is another model than the manifest names;
        ``out_of_memory``
    """
    with at_most(WEIGHING_BYTES):
        module = model.empty(manifest.config.model, manifest.tokenizer.vocab_size)
        layout = model.layout_of(module)
        buffers = sum(value.numel() * value.element_size() for value in module.buffers())
    if layout.parameters != manifest.model.parameters:
        raise TrainerError(
            "failed",
            f"the manifest names {manifest.model.parameters:,} parameters, but its model has "
            f"{layout.parameters:,}",
            "tell the organiser; this run cannot be joined",
        )
    if layout.digest != manifest.model.layout:
        raise TrainerError(
            "failed",
            "this version of transformers lays the model out differently than the organiser's",
            "install the versions of constraints.txt",
        )
    return Weighed(layout.parameters, buffers)


def building_bytes(weighed: Weighed) -> int:
    """Memory for building a model of this size on the CPU."""
    return 4 * _COPIES * weighed.parameters + 2 * weighed.buffers + BUILDING_BYTES

"""A node that sends what it did not train. Run as ``python lazy_node.py KIND node start ...``.

``zeros``: a pseudo-gradient of nothing; ``copier``: what another node sent in the round before,
under a new header, and honest work until it knows of any; ``half``: half of the steps, for which it
asks to be paid in full; ``voter``: noise, and for a round in which that counts the root of a state
that all of its kind invent alike.
Everything else of it is honest. For runs whose rounds are not sharded and have no tails.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import colluding_node
from artel import cli
from artel.node.supervisor import Trainer
from artel.node.trainer.machine import hardware
from artel.node.trainer.orders import Apply, Load, SetState, Train, Trained
from artel.protocol import model
from artel.protocol.assignment import Work
from artel.protocol.exchange import codec, pseudogradient
from artel.protocol.exchange.pseudogradient import HEADER_BYTES, Header
from artel.protocol.fingerprints import ROW_BYTES
from artel.protocol.manifest import Manifest, read_manifest
from artel.protocol.state import Layout

honest = Trainer.do


def numbers_of(blob: Path) -> bytes:
    """What follows the header."""
    return blob.read_bytes()[HEADER_BYTES:]


class Lazy:
    """What such a node knows."""

    manifest: Manifest
    layout: Layout
    root = ""
    me = ""
    before: Path | None = None
    """The contribution of another node to the round before."""

    def note(self, command: Any, answer: Any) -> None:
        if isinstance(command, Load):
            self.manifest, _ = read_manifest(command.manifest)
            config, vocab = self.manifest.config.model, self.manifest.tokenizer.vocab_size
            self.layout, self.root = model.layout_of(model.empty(config, vocab)), answer.root
        elif isinstance(command, SetState):
            self.root = command.root
        elif isinstance(command, Apply):
            self.root = answer.root
            others = (each.blob for each in command.contributions if each.node != self.me)
            self.before = next((blob for blob in others if any(numbers_of(blob))), None)

    def made(self, order: Train, payload: bytes) -> Trained:
        """A contribution of these numbers, as if all steps had been made for it."""
        work = Work.of(self.manifest.config)
        header = Header(order.round, self.root, codec.of(self.manifest.config.exchange))
        order.out.mkdir(exist_ok=True)
        path = order.out / f"lazy-{order.round}.blob"
        path.write_bytes(header.wrap(self.layout, payload))
        invented = order.out / f"lazy-{order.round}.steps"
        invented.write_bytes(bytes(ROW_BYTES * order.steps))
        return Trained(
            blob=path,
            parts=(),
            size=path.stat().st_size,
            fingerprints=invented,
            hardware=hardware("cpu", bf16=False),
            payload=pseudogradient.payload_digest(payload),
            loss=1.0,
            tokens=work.tokens(order.steps),
            head=order.steps,
            span=order.round if work.span else 0,
            tail=0,
            seconds={},
        )


known = Lazy()


async def zeros(trainer: Trainer, order: Train) -> Trained:
    nothing = np.zeros(known.layout.parameters, np.float32)
    return known.made(order, codec.of(known.manifest.config.exchange).encode(known.layout, nothing))


async def copier(trainer: Trainer, order: Train) -> Trained:
    if known.before is None:
        return await honest(trainer, order)
    return known.made(order, numbers_of(known.before))


async def half(trainer: Trainer, order: Train) -> Trained:
    steps = max(1, order.steps // 2)
    windows = order.windows[: len(order.windows) * steps // order.steps]
    made = await honest(trainer, dataclasses.replace(order, steps=steps, windows=windows))
    tokens = Work.of(known.manifest.config).tokens(order.steps)
    rows = made.fingerprints.read_bytes()
    made.fingerprints.write_bytes((2 * rows + bytes(ROW_BYTES))[: ROW_BYTES * order.steps])
    return dataclasses.replace(made, tokens=tokens, head=order.steps)


async def voter(trainer: Trainer, order: Train) -> Trained:
    noise = np.random.default_rng().normal(0, 1e-3, known.layout.parameters).astype(np.float32)
    return known.made(order, codec.of(known.manifest.config.exchange).encode(known.layout, noise))


KINDS = {each.__name__: each for each in (zeros, copier, half, voter)}


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]

    async def do(self: Trainer, command: Any, **options: Any) -> Any:
        if isinstance(command, Train):
            known.me = command.node
            return await KINDS[kind](self, command)
        answer = await honest(self, command, **options)
        known.note(command, answer)
        return answer

    Trainer.do = do  # type: ignore[assignment, method-assign]
    torch.set_num_threads(1)  # what it says that it computed on is what its trainer does
    if kind == voter.__name__:
        colluding_node.lie_if(lambda closed: known.me in closed.accepted)
    sys.exit(cli.main(arguments))

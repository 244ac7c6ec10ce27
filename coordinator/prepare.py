"""Preparing a run, once: text to shards, a tokenizer, the first state, and the signed manifest.

The organiser does this on one machine. Everything that comes out is content-addressed, so it needs
no second opinion: nodes check bytes against the manifest. In particular the initial parameters are
drawn here and published as a state, since the same seed gives other bits on another machine.

Runs in a process of its own (``artel run prepare``): torch's memory does not stay behind in the
coordinator.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from artel.coordinator import sources
from artel.coordinator.estimate import require_fragments
from artel.coordinator.preparation import Prepared, Stages, load_prepared, manifest_path
from artel.coordinator.rehearsal import rehearse
from artel.coordinator.tokenising import encoded, require_enough, splits, trained
from artel.ledger.fold.layout import LAYOUT_FILE
from artel.ledger.store.keyfiles import ORGANISER_KEY, require_home_of
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import DATABASE_NAME
from artel.protocol import files, model, shards, terminal
from artel.protocol.errors import ArtelError, CheckFailed, UsageError
from artel.protocol.identity import HomeLock, load, load_or_create
from artel.protocol.manifest import (
    ContributedTokens,
    DataFacts,
    Manifest,
    ModelFacts,
    SplitFacts,
    TokenizerFacts,
    open_manifest,
    sign,
)
from artel.protocol.net.blobs import BlobStore
from artel.protocol.run_config import RunConfig, TextSource
from artel.protocol.run_file import load_config
from artel.protocol.state import State, write_state
from artel.protocol.tokenizer import Ids, Tokenizer


def prepare(config_path: Path, home: Path, stages: Stages | None = None) -> Prepared:
    """Prepare the run of ``config_path`` in ``home``, or return the one that is already there.

    :param stages: shows how far it is, what is used of the text, what is not and why, and warnings
    :raises UsageError: when the file, its data or its model cannot be used, or when ``home`` holds
        another run or is a node's
    :raises CheckFailed: when what ``home`` holds is damaged, or of another version
    :raises ResourceError: when the disk is full or another process prepares the same home
    """
    config = load_config(config_path)
    require_home_of("coordinator", home)
    lock = HomeLock(home / "run")
    try:
        fresh = not _is_prepared(config, config_path, home)
        if fresh:
            _prepare(config, config_path, home, stages or Stages())
        if not (home / LAYOUT_FILE).exists():
            manifest, _ = open_manifest(manifest_path(home).read_bytes())
            module = model.empty(manifest.config.model, manifest.tokenizer.vocab_size)
            with files.told(home):
                files.write(home / LAYOUT_FILE, model.layout_of(module).encode())
        return replace(load_prepared(home), fresh=fresh)
    finally:
        lock.release()


def _is_prepared(config: RunConfig, config_path: Path, home: Path) -> bool:
    """Whether ``home`` holds the run of ``config``, with all that it needs."""
    path = manifest_path(home)
    try:
        envelope = path.read_bytes()
    except FileNotFoundError:
        envelope = _published(home)
        if not envelope:
            return False
        path.write_bytes(envelope)
    manifest, _ = open_manifest(envelope)
    if manifest.config != config:
        _published(home)  # where another version of this program wrote, that is said, and not this
        raise UsageError(
            f"{home} already holds the run {manifest.config.run.name!r}, and {config_path} "
            "describes another one",
            "a run never changes: prepare the new one with its own --home DIR",
        )
    # Not made anew: no other key can sign this run's ledger.
    if load(home / "node.key").key not in manifest.coordinators:
        raise CheckFailed(f"{home}/node.key is not the key that the run names as its coordinator")
    store = BlobStore(home / "blobs", None)
    for blob in required_blobs(manifest, store):
        if not store.has(blob):
            raise CheckFailed(
                f"{home} lacks {blob[:16]}…, a part of its run",
                "restore the folder blobs, or prepare again with a new --home DIR",
            )
    return True


def _published(home: Path) -> bytes:
    """The signed manifest that a home's ledger begins with; empty when there is none yet.

    :raises CheckFailed: when the ledger is damaged
    """
    if not (home / DATABASE_NAME).exists():
        return b""
    with LedgerReader.of(home) as store:
        return store.leaf(0) if store.size else b""


def required_blobs(manifest: Manifest, store: BlobStore) -> Iterator[str]:
    """What a coordinator needs to start the run: tokenizer, indexes, shards, first state."""
    yield manifest.tokenizer.id
    yield manifest.initial_state
    for facts in (manifest.data.train, manifest.data.validation):
        yield facts.index
        if (path := store.path(facts.index)) is not None:
            yield from shards.decode_index(path.read_bytes(), facts).shards


def _prepare(config: RunConfig, config_path: Path, home: Path, stages: Stages) -> None:
    organiser = load_or_create(home / ORGANISER_KEY)
    coordinator = load_or_create(home / "node.key")
    store = BlobStore(home / "blobs", None)

    inventory = sources.take_inventory(
        config.data.sources, config_path.parent, lambda done: stages("reading the text", done)
    )
    for name, words in inventory.words().items():
        stages.say(f"{name}: {words}")
    for warning in inventory.warnings:
        stages.say(f"! {warning}")
    train, validation = splits(config, inventory)

    # The model is tried before the slow part, so that a wrong key is reported within seconds.
    stages("checking the model", 0.0)
    module = model.empty(config.model, config.tokenizer.vocab_size)
    require_fragments(config, model.layout_of(module))
    for warning in rehearse(config, module):
        stages.say(f"! {warning}")
    stages("training the tokenizer", 0.0)
    tokenizer_file = trained(config, train)
    tokenizer = Tokenizer(tokenizer_file)
    dtype = shards.dtype_for(tokenizer.vocab_size)
    facts: dict[str, SplitFacts] = {}
    counts: dict[str, tuple[int, ...]] = {}
    for name, chosen in (("train", train), ("validation", validation)):
        index, counts[name] = _write_shards(
            config, tokenizer, chosen, store, dtype, partial(stages, f"tokenising the {name} split")
        )
        facts[name] = index.facts()
        store.put(index.encode())
    data = DataFacts(
        train=facts["train"],
        validation=facts["validation"],
        dtype=dtype,
        train_by_source=counts["train"],
        validation_by_source=counts["validation"],
        contributed=_contributed(config, counts["train"]),
    )

    require_enough(config, data.train.tokens, data.validation.tokens)
    stages("drawing the first parameters", 0.0)
    model_facts, initial_state = _initial_state(config, tokenizer.vocab_size, store)
    manifest = Manifest(
        config=config,
        organiser=organiser.key,
        coordinators=(coordinator.key, *config.coordination.standbys),
        tokenizer=TokenizerFacts(id=store.put(tokenizer_file), vocab_size=tokenizer.vocab_size),
        data=data,
        model=model_facts,
        initial_state=initial_state,
    )
    try:
        envelope = sign(manifest, organiser)
    except ArtelError as error:
        raise UsageError(error.message, error.hint) from None
    with files.told(home):
        files.write(manifest_path(home), envelope.encode())


def _write_shards(
    config: RunConfig,
    tokenizer: Tokenizer,
    parts: Sequence[sources.Text],
    store: BlobStore,
    dtype: shards.DType,
    report: Callable[[float], None],
) -> tuple[shards.ShardIndex, tuple[int, ...]]:
    """Tokenise the parts, documents separated by end-of-text, and store them shard by shard.

    :returns: the index, and the tokens of each source, in whose order they are
    """
    size = config.data.shard_tokens
    pending: list[Ids] = []  # tokens of the next shard, fewer than ``size`` in all
    ids: list[str] = []
    counts = [0] * len(config.data.sources)
    held = tokens = 0
    for batch in encoded(tokenizer, parts, report):
        for run, source in batch:
            pending.append(run)
            held += len(run)
            counts[source] += len(run)
        if held >= size:
            flat = np.concatenate(pending)
            whole = held // size * size
            for start in range(0, whole, size):
                ids.append(_put_shard(store, flat[start : start + size], dtype, ids))
            pending, held, tokens = [flat[whole:]], held - whole, tokens + whole
    if held:
        ids.append(_put_shard(store, np.concatenate(pending), dtype, ids))
    index = shards.ShardIndex(
        dtype=dtype, shard_tokens=size, tokens=tokens + held, shards=tuple(ids)
    )
    return index, tuple(counts)


def _contributed(config: RunConfig, counts: Sequence[int]) -> tuple[ContributedTokens, ...]:
    """What the manifest says of contributors: nothing when nobody is named. Neighbours with the
    same contributor are one stretch.

    :param counts: tokens of each source
    """
    stretches: list[tuple[str, int]] = []
    for source, tokens in zip(config.data.sources, counts, strict=True):
        account = source.contributor if isinstance(source, TextSource) else ""
        if stretches and stretches[-1][0] == account:
            tokens += stretches.pop()[1]
        if tokens:
            stretches.append((account, tokens))
    if not any(account for account, _ in stretches):
        return ()
    return tuple(ContributedTokens(account=a, tokens=tokens) for a, tokens in stretches)


def _put_shard(store: BlobStore, tokens: Ids, dtype: shards.DType, before: Sequence[str]) -> str:
    if len(before) >= shards.MAX_SHARDS:
        raise UsageError(
            f"the data takes more than {shards.MAX_SHARDS} shards", "raise data.shard_tokens"
        )
    return store.put(shards.encode_shard(tokens, dtype))


def _initial_state(config: RunConfig, vocab_size: int, store: BlobStore) -> tuple[ModelFacts, str]:
    """Build the model from the run's seed and store its parameters as the state of round 0."""
    module = model.build(config.model, vocab_size, config.run.seed)
    layout = model.layout_of(module)
    params = model.read_parameters(module)
    momentum = np.zeros_like(params) if config.exchange.outer.momentum else None
    path = files.unfinished(store.root / "state-0")
    root = write_state(path, State(0, layout.digest, params, momentum))
    store.adopt(root, path)
    return ModelFacts(layout=layout.digest, parameters=layout.parameters), root


def main(argv: list[str]) -> int:
    """The child of :mod:`.preparation`: on failure print the error as one JSON object."""
    run_file, option, home = argv
    assert option == "--home"
    terminal.prepare()
    try:
        prepare(Path(run_file), Path(home), Stages(indent="  "))
    except ArtelError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

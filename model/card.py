"""The card of a release: README.md as Hugging Face reads it, YAML in front of Markdown."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from artel import __version__
from artel.model import signing
from artel.model.evaluation import source_name
from artel.model.release import Release
from artel.protocol.run_config import TextSource
from artel.protocol.terminal import printable

MAX_CONTRIBUTORS = 50
_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+!|~&])")


def text(made: Release, *, plotted: bool) -> str:
    """The whole card.

    :param plotted: whether there is a plot beside it
    """
    lines = ["---", *_front(made), "---", *_body(made, plotted)]
    return "\n".join(lines) + "\n"


def plain(foreign: str) -> str:
    """Words of strangers as words, whatever markup is in them."""
    return _MARKUP.sub(r"\\\1", printable(foreign))


def _front(made: Release) -> Iterator[str]:
    """JSON values, which are YAML."""
    run = made.loaded.manifest.config
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    if run.run.model_licence:
        yield f"license: {json.dumps(run.run.model_licence.lower())}"
    yield f"tags: {json.dumps(['artel', run.model.type])}"
    if made.evaluations:
        metrics = [
            {"type": name, "value": round(value, 6), "name": f"{one.text} {name}"}
            for one in made.evaluations
            for name, value in (("loss", one.loss), ("perplexity", one.perplexity))
        ]
        task = {"type": "text-generation"}
        dataset = {"name": f"held out by run {made.loaded.run[:12]}", "type": "held-out"}
        result = {"task": task, "dataset": dataset, "metrics": metrics}
        yield f"model-index: {json.dumps([{'name': run.run.name, 'results': [result]}])}"


def _body(made: Release, plotted: bool) -> Iterator[str]:
    loaded, run = made.loaded, made.loaded.manifest.config
    yield f"# {plain(run.run.name)}"
    yield ""
    if run.run.description:
        yield from (plain(run.run.description), "")
    yield (
        f"Trained by the nodes of an Artel run, each on its own machine; this is its state after "
        f"{loaded.round:,} of {made.total:,} rounds."
    )
    yield ""
    yield "```python"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield 'model = AutoModelForCausalLM.from_pretrained(".")'
    yield 'tokenizer = AutoTokenizer.from_pretrained(".")'
    yield "```"
    yield from _quality(made, plotted)
    yield from _data(made)
    yield from _recipe(made)
    yield from _contributors(made)
    yield from _checks(made)


def _quality(made: Release, plotted: bool) -> Iterator[str]:
    yield from ("", "## How well it does", "")
    if made.evaluations:
        yield from _table(
            ("held-out text", "tokens", "nats per token", "perplexity"),
            [
                (plain(one.text), f"{one.tokens:,}", f"{one.loss:.4f}", f"{one.perplexity:.2f}")
                for one in made.evaluations
            ],
        )
    else:
        yield "The home that wrote this does not hold the text that is held out."
    reported = [row for row in made.losses if row.validation is not None]
    if reported:
        first, last = reported[0], reported[-1]
        yield ""
        yield (
            f"Nodes reported a validation loss of {first.validation:.4f} for state "
            f"{first.round} and of {last.validation:.4f} for state {last.round}; all of them are "
            "in `losses.jsonl`."
        )
    if plotted:
        yield from ("", "![Loss by round](loss.svg)")
    yield from ("", "A sample, of nothing but the beginning of a document:", "")
    yield from (f"    {printable(line)}" for line in made.sample.splitlines() or ["(nothing)"])
    yield from ("", "## Limits", "")
    window = made.loaded.manifest.config.data.seq_len
    yield (
        f"It continues text: it was not taught to follow instructions, or to be harmless, and what "
        f"it writes can be wrong. It never saw more than {window:,} tokens at once, and knows only "
        "what is in the data below."
    )


def _data(made: Release) -> Iterator[str]:
    manifest = made.loaded.manifest
    yield from ("", "## Data", "")
    rows = []
    sources, facts = manifest.config.data.sources, manifest.data
    none = (None,) * len(sources)
    train_counts, held_counts = facts.train_by_source or none, facts.validation_by_source or none
    for source, train, kept in zip(sources, train_counts, held_counts, strict=True):
        account = source.contributor if isinstance(source, TextSource) else ""
        said = manifest.config.run.data_licence or "not stated"
        licence = plain(said) if isinstance(source, TextSource) else "PSF-2.0"
        who = f"`{account[:16]}…`" if account else "nobody"
        rows.append((plain(source_name(source)), _number(train), _number(kept), licence, who))
    heads = ("source", "tokens to train on", "held out", "licence", "earns with it")
    yield from _table(heads, rows)
    yield ""
    yield (
        f"{manifest.data.train.tokens:,} tokens to train on and "
        f"{manifest.data.validation.tokens:,} held out, cut by a {manifest.config.tokenizer.kind} "
        f"tokenizer of {manifest.tokenizer.vocab_size:,} tokens. Contributions that were accepted "
        f"saw {made.tokens:,} tokens."
    )


def _number(count: int | None) -> str:
    return "not known" if count is None else f"{count:,}"


def _recipe(made: Release) -> Iterator[str]:
    manifest = made.loaded.manifest
    run = manifest.config
    outer = run.exchange.outer
    yield from ("", "## Recipe", "")
    yield from _table(
        ("", ""),
        [
            ("model", f"{run.model.type}, {manifest.model.parameters:,} parameters"),
            ("inner optimiser", f"{run.optimizer.kind}, peak learning rate {run.optimizer.lr:g}"),
            ("round", f"{run.rounds.inner_steps:,} steps of {run.optimizer.batch_size:,} windows"),
            ("outer optimiser", f"learning rate {outer.lr:g}, momentum {outer.momentum:g}"),
            ("exchange", f"{run.exchange.codec}, {run.exchange.aggregator}"),
            *(
                (f"amended from round {one.round:,} on", f"{name} = {text}")
                for one in made.amendments
                for name, text in sorted(one.changes.items())
            ),
            ("software", f"artel-network {__version__}"),
        ],
    )
    yield from ("", "All of it is in `manifest.json`, which the organiser signed.")


def _contributors(made: Release) -> Iterator[str]:
    yield from ("", "## Who made it", "")
    yield plain(made.loaded.manifest.config.ownership.statement)
    yield ""
    shares = made.shares["shares"]
    yield from _table(
        ("account", "name", "tokens", "share"),
        [_contributor(one) for one in shares[:MAX_CONTRIBUTORS]],
    )
    if (more := len(shares) - MAX_CONTRIBUTORS) > 0:
        yield from ("", f"{more:,} more are in the ledger.")


def _contributor(one: dict[str, Any]) -> tuple[str, str, str, str]:
    name = plain(one["alias"]) + (f" ({plain(one['team'])})" if one["team"] else "")
    tokens = one["work"].get("compute", 0)
    return f"`{one['account'][:16]}…`", name, f"{tokens:,}", f"{100 * one['share']:.2f} %"


def _checks(made: Release) -> Iterator[str]:
    loaded = made.loaded
    yield from ("", "## Check it", "")
    yield f"- run id: `{loaded.run}`"
    yield f"- state root: `{loaded.root}`"
    yield f"- ledger: {made.size:,} entries, {made.final:,} of them final, root `{made.head}`"
    if made.owner:
        yield f"- released with the key `{made.owner}`"
    yield from ("", "In this folder, with `pip install artel-network[node]`:", "", "```")
    run = shlex.quote(loaded.run)
    yield "# the weights are the state that was agreed on, and every entry of the ledger holds"
    yield f"artel model verify . --run {run}"
    yield "# the same of the ledger alone, by the light client"
    yield f"artel ledger audit ledger --run {run} --full"
    if made.signed:
        yield "# nothing in this folder was changed, by OpenSSF's own tool"
        yield (
            f"model_signing verify key . --signature {signing.SIGNATURE} "
            f"--public_key {signing.PUBLIC_KEY}"
        )
    yield "```"


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)

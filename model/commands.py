"""``artel model``: the trained model as files, as text, as numbers and as a service."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from artel.protocol import commandline
from artel.protocol import options as types
from artel.protocol.commandline import (
    AsJson,
    File,
    Folder,
    Http,
    LogJson,
    RunId,
    Table,
    Verbose,
    fields,
    progress,
    show,
    value,
)
from artel.protocol.errors import EXIT_INTERRUPTED, EXIT_OK
from artel.protocol.paths import expanded

if TYPE_CHECKING:
    import socket

    from artel.model.generating import Sampling
    from artel.model.pretrained import LoadedModel

MAX_TOKENS = 100_000
MAX_TEMPERATURE = 10
MAX_SEED = 2**63 - 1
"""The largest that torch takes."""
DEFAULT_HOME = Path("~/.artel/node")
DEFAULT_HTTP = types.Endpoint("127.0.0.1", 8000)

app = commandline.group(
    "model",
    "Take the trained model along, let it write, measure it, serve it, check it.",
    {
        0: "done",
        1: "a check failed",
        2: "wrong input",
        3: "nobody answers",
        4: "this machine lacks something (disk, a port, a part of the data)",
        130: "interrupted",
    },
)

Home = Annotated[Folder, Parameter(help="home of a node or a coordinator of the run")]
Round = Annotated[
    int | None,
    value(
        types.whole(0, 1_000_000),
        "R",
        help="the state after so many rounds; otherwise the newest that the home holds",
    ),
]
Tokens = Annotated[int, value(types.whole(1, MAX_TOKENS), "N", help="tokens to add")]
Temperature = Annotated[
    float,
    value(types.number(0, MAX_TEMPERATURE), "T", help="0 takes the likeliest token, at most 10"),
]
Seed = Annotated[int, value(types.whole(0, MAX_SEED), "N", help="another one gives another text")]


@app.command
def export(
    out: Folder,
    /,
    *,
    home: Home = DEFAULT_HOME,
    round: Round = None,
    source: Annotated[str, Parameter(name="--from", metavar="URL")] = "",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> int:
    """Write a state as a release: a folder that transformers loads, with its card and its proofs.

    The card tells data, recipe, losses, contributors, limits, and how to check all of it. Beside it
    lie the signed manifest, the whole ledger, a CycloneDX bill of materials, and an OpenSSF model
    signature, made with HOME/release.key where the extra "release" is installed.

    example: artel model export my-model

    :param out: the folder
    :param source: page of the run's coordinator, for the losses of all rounds; a coordinator's own
        home has them
    """
    from artel.model import exporting, signing
    from artel.model.held import held

    home = expanded(home)
    with held(home, round) as found:
        made = exporting.export(found, out, home, source)
    root = made.loaded.root
    loss = {one.text: one.loss for one in made.evaluations}
    facts = {"out": str(out), "state": root, "round": made.loaded.round, "signed": made.signed}
    return show(
        facts | {"loss": loss},
        (
            f"wrote state {root[:12]}… after {made.loaded.round:,} rounds to {out}",
            f'load it with: AutoModelForCausalLM.from_pretrained("{out}")',
            f"check it with: artel model verify {out}",
            *(() if made.signed else (f"not signed: {signing.EXTRA}, and export again",)),
        ),
        as_json=as_json,
    )


@app.command
def verify(
    folder: Folder, /, *, run: RunId = "", as_json: AsJson = False, verbose: Verbose = False
) -> int:
    """Check a release by its folder alone: ledger, weights, signature.

    The ledger in it is replayed, and the weights have to be the state that was agreed on in it.

    example: artel model verify my-model

    :param folder: that artel model export wrote
    :param run: id of the run that it has to be of
    """
    from artel.model import verifying

    found = verifying.verify(folder, run, progress("entries replayed"))
    return show(asdict(found), [fields(verifying.words(found))], as_json=as_json)


@app.command
def generate(
    *,
    home: Home = DEFAULT_HOME,
    round: Round = None,
    prompt: Annotated[str, value(types.text, "TEXT")] = "def ",
    tokens: Tokens = 100,
    temperature: Temperature = 0.8,
    seed: Seed = 0,
    verbose: Verbose = False,
) -> int:
    """Let a state continue a text.

    example: artel model generate --prompt "def main(" --tokens 100

    :param prompt: the text
    """
    from artel.model import generating

    how = generating.Sampling(temperature=temperature, seed=seed)
    text = generating.text(_loaded(home, round), prompt, tokens, how)
    sys.stdout.write(text + "\n")
    return EXIT_OK


@app.command
def chat(
    *,
    home: Home = DEFAULT_HOME,
    round: Round = None,
    tokens: Tokens = 200,
    temperature: Temperature = 0.8,
    seed: Seed = 0,
    verbose: Verbose = False,
) -> int:
    """Write in turns with a state, line by line; an empty line or Ctrl-D ends it.

    It continues what was said, all of it: the model was trained on text, not on conversations.

    example: artel model chat --home node-1
    """
    from artel.model import generating

    loaded, said, turn = _loaded(home, round), list[str](), 0
    print(f"state {loaded.root[:12]}… after {loaded.round:,} rounds", file=sys.stderr)
    while (line := _asked()) is not None:
        said.append(line)
        how = generating.Sampling(temperature=temperature, seed=seed + turn)
        said.append(_spoken(loaded, generating.as_text(said), tokens, how))
        turn += 1
    return EXIT_OK


def _asked() -> str | None:
    """A line of the person; None when there is no more."""
    sys.stdout.flush()
    if sys.stdin.isatty():
        sys.stdout.write("> ")
        sys.stdout.flush()
    return sys.stdin.readline(MAX_TOKENS).rstrip("\r\n") or None


def _spoken(loaded: LoadedModel, prompt: str, most: int, how: Sampling) -> str:
    """What the model writes, shown while it comes; an empty line ends it."""
    from artel.model import generating

    spelling, said = generating.Spelling(loaded), ""
    for token in generating.tokens(loaded, generating.prompt_ids(loaded, prompt), most, how):
        piece = spelling.add(token)
        said += piece
        if generating.TURN_END in said.lstrip("\n"):
            break
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return said.strip("\n")


@app.command(name="eval")
def evaluate(
    *texts: File,
    home: Home = DEFAULT_HOME,
    round: Round = None,
    tasks: Annotated[str, value(types.text, "NAMES")] = "",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> int:
    """Measure a state on the text that the run holds out, or on texts of yours.

    Losses are in nats per token: with another tokenizer they do not compare.

    example: artel model eval my-text.txt --home node-1

    :param texts: files of UTF-8 text; the run's held-out text when there are none
    :param tasks: of lm-evaluation-harness, with commas between them, where it is installed
    """
    from artel.model import evaluation

    loaded = _loaded(home, round)
    if texts:
        found = [evaluation.of_file(loaded, path) for path in texts]
    else:
        found = evaluation.held_out(loaded, expanded(home) / "blobs")
    scores = evaluation.scores(loaded, tasks.split(",")) if tasks else {}
    rows = [
        (one.text, f"{one.tokens:,}", f"{one.loss:.4f}", f"{one.perplexity:.2f}") for one in found
    ]
    heads = ("text", "tokens", "nats per token", "perplexity")
    return show(
        {
            "run": loaded.run,
            "round": loaded.round,
            "state": loaded.root,
            "texts": [one.facts() for one in found],
            "tasks": scores,
        },
        (Table(rows, heads, (1, 2, 3)), *_scores(scores)),
        as_json=as_json,
    )


@app.command
def serve(
    *,
    home: Home = DEFAULT_HOME,
    http: Http = DEFAULT_HTTP,
    log_json: LogJson = False,
    verbose: Verbose = False,
) -> int:
    """Serve the newest state over HTTP, for OpenAI's clients and for a page at /.

    When the node or the coordinator of the home holds a newer agreed state, that one writes the
    next text. Nobody is asked for a key: who can reach the address may use the model.

    example: artel model serve --home node-1 --http 127.0.0.1:8000

    :param http: where to serve; port 0 is a free one
    """
    import asyncio

    from artel.ledger.web.server import bind
    from artel.protocol import events

    with contextlib.closing(bind(*http)) as listener:
        loaded = _loaded(home, None)
        events.configure(json_lines=log_json, verbose=verbose)
        return asyncio.run(_serve(loaded, expanded(home), listener))


async def _serve(loaded: LoadedModel, home: Path, listener: socket.socket) -> int:
    """Until a signal comes."""
    import asyncio

    from artel.ledger.web.server import address_of
    from artel.model.endpoint import Engine, ModelServer
    from artel.protocol.leaving import on_signals
    from artel.protocol.tasks import end

    stopped = asyncio.Event()
    on_signals(stopped.set, lambda: os._exit(EXIT_INTERRUPTED))
    engine = Engine(loaded)
    following = asyncio.create_task(engine.follow(home))
    try:
        server = ModelServer(engine)
        async with server.listening(listener):
            url = address_of(listener)
            print(f"state {loaded.root[:12]}… after {loaded.round:,} rounds", flush=True)
            print(f"page {url}", flush=True)
            print(f"API  {url}/v1", flush=True)
            await stopped.wait()
    finally:
        await end(following)
        engine.close()
    return EXIT_OK


def _scores(scores: dict[str, dict[str, float]]) -> Iterator[str | Table]:
    """A line for each number of each task."""
    if scores:
        rows = [(task, name, f"{n:.4f}") for task, all in scores.items() for name, n in all.items()]
        yield Table(rows, ("task", "metric", "number"), (2,))


def _loaded(home: Path, round: int | None) -> LoadedModel:
    from artel.model.held import held
    from artel.model.pretrained import load

    with held(expanded(home), round) as found:
        return load(found)

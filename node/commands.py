"""``artel node``: start a node, look at it, and take the trained model along."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from artel.protocol import commandline, files, identity
from artel.protocol import options as types
from artel.protocol.cgroup import Groups
from artel.protocol.commandline import (
    Announce,
    AsJson,
    File,
    Folder,
    Http,
    Listen,
    LogJson,
    Verbose,
    fields,
    show,
    value,
)
from artel.protocol.errors import EXIT_INTERRUPTED, EXIT_OK, ArtelError, Unfit, UsageError
from artel.protocol.invite import Invite
from artel.protocol.leaving import on_signals
from artel.protocol.paths import expanded
from artel.protocol.terminal import printable

if TYPE_CHECKING:
    from artel.node.daemon import Daemon
    from artel.node.join import Options

MAX_SAMPLE_TOKENS = 100_000
MAX_TEMPERATURE = 10
MAX_SEED = 2**63 - 1
"""The largest that torch takes."""
DEFAULT_HOME = Path("~/.artel/node")
DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/0"
DEFAULT_HTTP = types.Endpoint("127.0.0.1", 0)
"""For this machine only, at a free port."""
LEAVE_AT_ONCE_S = 15.0
ONE_WAY = "by nobody: it opens all connections itself, and the coordinator passes its work on"
ALONE = "it does not answer, this node keeps trying"

app = commandline.group(
    "node",
    "Take part in a run.",
    {
        0: "done",
        1: "failed",
        2: "wrong input (the invite, a key file)",
        3: "nobody answers",
        4: "this machine lacks something (memory, disk, a port, the home is in use)",
        130: "left at once: a second Ctrl-C, or one before the node had joined",
    },
)

CORES = Groups().cores()
NodeHome = Annotated[Folder, Parameter(help="the node's folder")]


def rate(text: str) -> int:
    """Megabits per second as bytes per second."""
    return round(types.number(0.01, 1e6)(text) * 1e6 / 8)


# --- start ---------------------------------------------------------------------------------------


@app.command
def start(
    *,
    home: NodeHome = DEFAULT_HOME,
    join: str | None = None,
    account: File | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: Annotated[int, value(types.whole(0, CORES), "N")] = 0,
    listen: Listen = (DEFAULT_LISTEN,),
    announce: Announce = (),
    http: Http = DEFAULT_HTTP,
    quota: Annotated[int, value(types.whole(1, 10**9), "MB")] = 10_000,
    uplink: Annotated[int | None, value(rate, "MBIT")] = None,
    no_check: bool = False,
    log_json: LogJson = False,
    verbose: Verbose = False,
) -> int:
    """Join a run and train until it is finished.

    The invite is the line that the organiser published. Press Ctrl-C once to finish the round under
    way and leave with its credit, twice to leave at once; SIGTERM and a terminal that closes do the
    same. Start again with the same command: the node goes on where it was.

    example: artel node start --join artel1.eyJwZWVycyI6…

    :param join: the invite, needed the first time in a home
    :param account: key file of the owner; otherwise HOME/account.key
    :param device: what the trainer computes on
    :param threads: for training, at most the cores of this machine; 0 takes all
    :param listen: where to accept connections; port 0 is a free one
    :param announce: address to tell others instead, like /ip4/203.0.113.7/tcp/4200 or
        /dns4/run.example.org/tcp/4200
    :param http: where to serve the run's ledger and this node's page; port 0 is a free one
    :param quota: disk space to use at most
    :param uplink: megabits per second to send at most, all traffic together
    :param no_check: start on a slow machine too
    """
    from artel.ledger.store.keyfiles import require_home_of
    from artel.ledger.web.server import claimed
    from artel.protocol import events

    home = expanded(home)
    require_home_of("node", home)
    with claimed(home, http, listen) as (lock, page):
        try:
            files.require_ours(home / "manifest.json", _is_manifest)
            invite = _invite(join, home)
            owner = _owner(account, home)
            node = identity.load_or_create(home / "node.key")
            events.configure(json_lines=log_json, verbose=verbose, file=home / "node.log")
            from artel.node.join import Options  # takes seconds

            options = Options(
                home=home,
                invite=invite,
                identity=node,
                account=owner,
                device=device,
                threads=threads or CORES,
                listen=listen,
                announce=announce,
                quota_bytes=quota * 1_000_000,
                uplink=uplink,
                check=not no_check,
            )
            return asyncio.run(_serve(options, page))
        except (Unfit, UsageError):  # nobody knows the keys in it yet
            events.configure(json_lines=log_json, verbose=verbose)  # the log goes with the home
            lock.abandon()
            raise


def _owner(given: Path | None, home: Path) -> identity.Identity:
    """The key of the account: the file that was given, or this home's own, made when it is new."""
    own = home / "account.key"
    path = given or own
    if not path.exists() and (home / "node.key").exists():
        raise UsageError(
            f"the account of this node is not here: there is no {path}",
            "restore it from a backup, or name its key file with --account; to begin anew with "
            "another account, move node.key away too",
        )
    return identity.load(given) if given else identity.load_or_create(own)


def _is_manifest(data: bytes) -> bool:
    """Whether this is a manifest, of any version; one of another version is refused later."""
    from artel.protocol import dsse
    from artel.protocol.manifest import PAYLOAD_TYPE

    try:
        return dsse.decode(data).payload_type == PAYLOAD_TYPE
    except ArtelError:
        return False


def _invite(given: str | None, home: Path) -> Invite:
    """The invite on the command line, or the one that this home joined with before."""
    kept = home / "invite"
    if given is None:
        if not kept.exists():
            raise UsageError(
                "this node has not joined a run yet",
                "add --join INVITE: the organiser has the line",
            )
        given = kept.read_text(encoding="utf-8", errors="replace")
    invite = Invite.decode(given)
    if kept.exists():
        before = Invite.decode(kept.read_text(encoding="utf-8", errors="replace"))
        if before.run != invite.run:
            raise UsageError(
                f"{home} belongs to another run ({before.run[:12]}…)",
                "choose another --home for this run",
            )
    files.write(kept, f"{invite.encode()}\n".encode())
    return invite


async def _serve(options: Options, http: socket.socket) -> int:
    """Join, take part, leave. A signal once leaves after the round, twice at once."""
    from artel.node import status
    from artel.node.join import join
    from artel.node.overview import overview
    from artel.protocol.net.names import first_words
    from artel.protocol.tasks import end

    running: list[Daemon] = []
    task = asyncio.current_task()
    assert task is not None

    def leave() -> None:
        if not running:
            leave_now()
            return
        seconds = running[0].leave()
        after = f"finishing the round under way, {seconds:.0f} s at most" if seconds else "leaving"
        _say(f"{after}; press Ctrl-C again to leave now")

    def leave_now() -> None:
        task.cancel()
        # Whatever hangs on the way out must not keep a machine that its owner wants back.
        asyncio.get_running_loop().call_later(LEAVE_AT_ONCE_S, os._exit, EXIT_INTERRUPTED)

    spoke = asyncio.Event()

    def say(line: str) -> None:
        spoke.set()
        _say(line)

    on_signals(leave, leave_now)
    try:
        async with contextlib.AsyncExitStack() as stack:
            _say(f"node {options.identity.peer_id}")
            if types.only_here(options.announce):
                _say(f"! announce {types.only_here(options.announce)}")
            first = asyncio.create_task(first_words(options.invite.peers, _say, spoke))
            stack.push_async_callback(end, first)
            daemon = await join(options, stack, say)
            running.append(daemon)
            site = await status.site_of(daemon.session)
            url = await stack.enter_async_context(
                status.serving(options.home, partial(overview, daemon), site, http)
            )
            _say(f"page {url}")
            try:
                await daemon.run()
            except asyncio.CancelledError:
                await asyncio.shield(daemon.goodbye())
                raise
            _say(f"left with {daemon.credit():,} credit, vested and pending")
            return EXIT_OK
    except asyncio.CancelledError:
        had = "a round that was not finished gives no credit"
        _say(f"left at once; {had if running else 'it had not joined the run yet'}")
        return EXIT_INTERRUPTED


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone; the node is not
        print(printable(line), flush=True)


# --- the others ----------------------------------------------------------------------------------


@app.command
def status(
    *, home: NodeHome = DEFAULT_HOME, as_json: AsJson = False, verbose: Verbose = False
) -> int:
    """Show what the node of a home is doing: round, step, loss, speed, bytes, credit.

    example: artel node status --json
    """
    from artel.node.status import read

    now = read(expanded(home))
    return show(now, [] if as_json else [fields(_status(now))], as_json=as_json)


def _status(now: dict[str, Any]) -> Iterator[tuple[str, str]]:
    step = f", step {now['step']}/{now['steps']}" if now["phase"] == "training" else ""
    loss = "unknown yet" if now["loss"] is None else f"{now['loss']:.3f} nats per token"
    seconds = "  ".join(f"{name} {value:.2f}" for name, value in now["seconds"].items())
    used = now["computing"]
    yield "run", f"{now['name']} ({now['run'][:12]}…)"
    yield "node", now["node"]
    yield "account", f"{now['account'][:16]}…"
    yield "doing", f"{now['phase']}{step} ({now['reason']})"
    yield "round", f"{now['state_round']} of {now['rounds_total']} agreed"
    yield "loss", loss
    yield "speed", f"{now['tokens_per_second']:,.0f} tokens/s"
    yield "computing", "unknown yet" if used is None else f"{100 * used:.1f} % of the last round"
    yield "up", _traffic(now["up_by_kind"])
    yield "down", _traffic(now["down_by_kind"])
    yield "served", _peers(now["served"])
    yield "fetched", _peers(now["fetched"])
    yield (
        "credit",
        (
            f"{now['vested']:,} vested, {now['pending']:,} pending, {now['awaiting']:,} "
            f"awaiting agreement ({100 * now['share']:.1f} % of the model, with pending)"
        ),
    )
    yield "rejected", ", ".join(f"{n} × {why}" for why, n in now["rejected"].items()) or "none"
    held = f"{now['ledger_size']:,} entries, {now['cosigned_size']:,} of them cosigned"
    yield "ledger", f"{held}, {now['final_size']:,} final"
    yield "reached", "directly" if now["reachable"] else ONE_WAY
    yield "page", now["page"]
    yield (
        "memory",
        (
            f"daemon {now['memory_daemon'] / 1e6:.0f} MB, "
            f"trainer {now['memory_trainer'] / 1e6:.0f} MB"
        ),
    )
    yield "last round", f"{seconds} (seconds)" if seconds else "none yet"
    if now["coordinator_lost"] or now["waiting"]:
        waits = now["waiting"] or ALONE
        # One that has sealed the term, and is answered, waits alone: others make entries final.
        final = "nothing becomes final here, " if now["coordinator_lost"] else ""
        yield "coordinator", f"{waits}; {final}what is assigned is trained meanwhile"
    if now["last_error"]:
        yield "last error", now["last_error"]


def _traffic(by_kind: dict[str, int]) -> str:
    total = sum(by_kind.values())
    parts = ", ".join(f"{kind} {size / 1e6:.2f}" for kind, size in sorted(by_kind.items()))
    return f"{total / 1e6:.2f} MB ({parts})" if parts else "0 MB"


def _peers(by_peer: dict[str, int]) -> str:
    """Who gave or got most; the others are summed up."""
    ranked = sorted(by_peer.items(), key=lambda item: -item[1])
    parts = [f"…{peer[-8:]} {size / 1e6:.2f} MB" for peer, size in ranked[:4]]
    if len(ranked) > 4:
        parts.append(f"{len(ranked) - 4} more {sum(s for _, s in ranked[4:]) / 1e6:.2f} MB")
    return ", ".join(parts) or "nobody yet"


@app.command
def measure(
    folder: Folder,
    /,
    *,
    record: bool = False,
    threads: Annotated[int, value(types.whole(0, CORES), "N")] = 0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> int:
    """Measure how far apart two machines come with the same work; for [trust] tolerances.

    On one machine record some short spans of training, take the folder to the other one, and
    measure there. What is printed is the relative error of each kind of work.

    example: artel node measure --record spans

    :param folder: of the recorded spans
    :param record: train and write them, instead of repeating them
    :param threads: for training, at most the cores of this machine; 0 takes all
    """
    from artel.node import measuring

    folder = expanded(folder)
    if record:
        hardware = asyncio.run(measuring.recorded(folder, threads or CORES))
        return show(
            {"hardware": hardware, "folder": str(folder)},
            (f"recorded on {hardware}", f"on another machine: artel node measure {folder.name}"),
            as_json=as_json,
        )
    found = asyncio.run(measuring.measured(folder, threads or CORES))
    lines = [f"made on {found[0].made_on}, repeated on {found[0].repeated_on}"]
    return show(
        [asdict(one) for one in found],
        (*lines, fields((one.kind, measuring.words(one)) for one in found)),
        as_json=as_json,
    )


@app.command
def export(
    out: Folder,
    /,
    *,
    home: NodeHome = DEFAULT_HOME,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> int:
    """Write the newest state as a Hugging Face folder that transformers loads with from_pretrained.

    example: artel node export my-model

    :param out: the folder
    """
    from artel.node import pretrained
    from artel.node.newest import newest

    with newest(expanded(home)) as found:
        pretrained.export(found, out)
    return show(
        {"out": str(out), "state": found.root},
        (
            f"wrote state {found.root[:12]}… to {out}",
            f'load it with: AutoModelForCausalLM.from_pretrained("{out}")',
        ),
        as_json=as_json,
    )


@app.command
def sample(
    *,
    home: NodeHome = DEFAULT_HOME,
    prompt: Annotated[str, value(types.text, "TEXT")] = "def ",
    tokens: Annotated[int, value(types.whole(1, MAX_SAMPLE_TOKENS), "N")] = 100,
    temperature: Annotated[float, value(types.number(0, MAX_TEMPERATURE), "T")] = 0.8,
    seed: Annotated[int, value(types.whole(0, MAX_SEED), "N")] = 0,
    verbose: Verbose = False,
) -> int:
    """Let the newest state continue a text.

    example: artel node sample --prompt "def main(" --tokens 100

    :param prompt: the text
    :param tokens: how many to add
    :param temperature: 0 takes the likeliest, at most 10
    :param seed: another one gives another text
    """
    from artel.node import pretrained
    from artel.node.newest import newest

    with newest(expanded(home)) as found:
        text = pretrained.sample(
            found, prompt, max_tokens=tokens, temperature=temperature, seed=seed
        )
    sys.stdout.write(text + "\n")
    return EXIT_OK

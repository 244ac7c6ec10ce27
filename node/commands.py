"""``artel node``: start a node, look at it, and take the trained model along."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artel.node.limits import MAX_SAMPLE_TOKENS, MAX_SEED, MAX_TEMPERATURE
from artel.protocol import files, identity
from artel.protocol import options as types
from artel.protocol.arguments import Parser
from artel.protocol.cgroup import Groups
from artel.protocol.errors import EXIT_INTERRUPTED, EXIT_OK, ArtelError, UsageError
from artel.protocol.invite import Invite
from artel.protocol.leaving import on_signals
from artel.protocol.paths import expanded
from artel.protocol.terminal import printable

if TYPE_CHECKING:
    from artel.node.daemon import Daemon
    from artel.node.join import Options

DEFAULT_HOME = Path("~/.artel/node")
DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/0"
DEFAULT_QUOTA_MB = 10_000
MAX_QUOTA_MB = 10**9
LEAVE_AT_ONCE_S = 15.0

_EXITS = """
exit codes: 0 done · 1 failed · 2 wrong input (the invite, a key file) · 3 nobody answers
            4 this machine lacks something (memory, disk, a port, the home is in use)
            130 left at once: a second Ctrl-C, or one before the node had joined"""

_START = f"""\
Join a run and train until it is finished.

The invite is the line that the organiser published. Press Ctrl-C once to finish the round under way
and leave with its credit, twice to leave at once; SIGTERM and a terminal that closes do the same.
Start again with the same command: the node goes on where it was.

example:
  artel node start --join artel1.eyJwZWVycyI6…
{_EXITS}"""

_STATUS = f"""\
Show what the node of a home is doing: round, step, loss, speed, bytes, credit.

example:
  artel node status --json
{_EXITS}"""

_EXPORT = f"""\
Write the newest state as a Hugging Face folder that transformers loads with from_pretrained.

example:
  artel node export my-model
{_EXITS}"""

_SAMPLE = f"""\
Let the newest state continue a text.

example:
  artel node sample --prompt "def main(" --tokens 100
{_EXITS}"""


def main(argv: list[str]) -> int:
    """Run one ``artel node`` command."""
    arguments = _parser().parse_args(argv)
    arguments.home = expanded(arguments.home)
    result: int = arguments.run(arguments)
    return result


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="artel node", description="Take part in a run.", epilog=_EXITS, formatter_class=raw
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, text: str, run: Any) -> argparse.ArgumentParser:
        about = text.splitlines()[0]
        sub = commands.add_parser(name, help=about, description=text, formatter_class=raw)
        sub.add_argument(
            "--home", type=Path, default=DEFAULT_HOME, help=f"the node's folder ({DEFAULT_HOME})"
        )
        sub.add_argument("--verbose", action="store_true", help="log more, show tracebacks")
        sub.set_defaults(run=run)
        return sub

    start, cores = command("start", _START, _start), Groups().cores()
    start.add_argument("--join", metavar="INVITE", help="needed the first time in a home")
    start.add_argument(
        "--account", type=Path, metavar="KEY", help="key file of the owner (HOME/account.key)"
    )
    start.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    start.add_argument(
        "--threads",
        type=types.whole(0, cores),
        default=0,
        metavar="N",
        help=f"for training, at most the {cores} cores of this machine; 0 takes all (0)",
    )
    start.add_argument(
        "--listen",
        type=types.listen,
        action="append",
        metavar="MULTIADDR",
        help=f"where to accept connections ({DEFAULT_LISTEN}: a free port)",
    )
    start.add_argument(
        "--announce",
        type=types.announce,
        action="append",
        metavar="MULTIADDR",
        help=f"address to tell others instead, like {types.ANNOUNCE_FORM}",
    )
    start.add_argument(
        "--http",
        type=types.endpoint,
        default=("127.0.0.1", 0),
        metavar="HOST:PORT",
        help="where to serve the run's ledger and this node's page (127.0.0.1:0: a free port, for "
        "this machine only)",
    )
    start.add_argument(
        "--quota",
        type=types.whole(1, MAX_QUOTA_MB),
        default=DEFAULT_QUOTA_MB,
        metavar="MB",
        help="disk space to use at most",
    )
    start.add_argument(
        "--uplink",
        type=_rate,
        metavar="MBIT",
        help="megabits per second to send at most, all traffic together (no limit)",
    )
    start.add_argument("--no-check", action="store_true", help="start on a slow machine too")
    start.add_argument("--log-json", action="store_true", help="events as JSON lines")

    status = command("status", _STATUS, _status)
    status.add_argument("--json", action="store_true", help="print one JSON object")

    export = command("export", _EXPORT, _export)
    export.add_argument("out", type=Path, metavar="FOLDER")
    export.add_argument("--json", action="store_true", help="print one JSON object")

    sample = command("sample", _SAMPLE, _sample)
    sample.add_argument("--prompt", type=types.text, default="def ")
    sample.add_argument(
        "--tokens",
        type=types.whole(1, MAX_SAMPLE_TOKENS),
        default=100,
        metavar="N",
        help="how many to add (100)",
    )
    sample.add_argument(
        "--temperature",
        type=types.number(0, MAX_TEMPERATURE),
        default=0.8,
        metavar="T",
        help=f"0 takes the likeliest, at most {MAX_TEMPERATURE} (0.8)",
    )
    sample.add_argument("--seed", type=types.whole(0, MAX_SEED), default=0, metavar="N")
    return parser


# --- start ---------------------------------------------------------------------------------------


def _start(arguments: argparse.Namespace) -> int:
    from artel.node import status
    from artel.protocol import events

    home: Path = arguments.home
    lock = identity.HomeLock(home)
    http: socket.socket | None = None
    try:
        # At once, so that nobody waits for a node that cannot start.
        http = status.bind(*arguments.http)
        for address in arguments.listen or ():
            types.check_port_free(address)
        files.require_ours(home / status.ADDRESS_FILE, files.holds("url"))
        files.require_ours(home / "manifest.json", _is_manifest)
        invite = _invite(arguments.join, home)
        account_file = arguments.account or home / "account.key"
        if not account_file.exists() and (home / "node.key").exists():
            raise UsageError(
                f"the account of this node is not here: there is no {account_file}",
                "restore it from a backup, or name its key file with --account; to begin anew with "
                "another account, move node.key away too",
            )
        account = (
            identity.load(account_file)
            if arguments.account
            else identity.load_or_create(account_file)
        )
        node = identity.load_or_create(home / "node.key")
        events.configure(
            json_lines=arguments.log_json, verbose=arguments.verbose, file=home / "node.log"
        )
        from artel.node.join import Options

        options = Options(
            home=home,
            invite=invite,
            identity=node,
            account=account,
            device=arguments.device,
            threads=arguments.threads or Groups().cores(),
            listen=tuple(arguments.listen or (DEFAULT_LISTEN,)),
            announce=tuple(arguments.announce or ()),
            quota_bytes=arguments.quota * 1_000_000,
            uplink=arguments.uplink,
            check=not arguments.no_check,
        )
        return asyncio.run(_serve(options, http))
    finally:
        if http is not None:
            http.close()
        lock.release()


def _is_manifest(data: bytes) -> bool:
    from artel.protocol.manifest import open_manifest

    try:
        open_manifest(data)
    except ArtelError:
        return False
    return True


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

    on_signals(leave, leave_now)
    try:
        async with contextlib.AsyncExitStack() as stack:
            _say(f"node {options.identity.peer_id}")
            _say(f"account {options.account.key}")
            if types.only_here(options.announce):
                _say(f"! announce {types.only_here(options.announce)}")
            daemon = await join(options, stack, _say)
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
        _say("left at once; a round that was not finished gives no credit")
        return EXIT_INTERRUPTED


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone; the node is not
        print(printable(line), flush=True)


# --- the others ----------------------------------------------------------------------------------


def _status(arguments: argparse.Namespace) -> int:
    from artel.node import status

    now = status.read(arguments.home)
    if arguments.json:
        print(json.dumps(now))
        return EXIT_OK
    step = f", step {now['step']}/{now['steps']}" if now["phase"] == "training" else ""
    loss = "unknown yet" if now["loss"] is None else f"{now['loss']:.3f} nats per token"
    seconds = "  ".join(f"{name} {value:.2f}" for name, value in now["seconds"].items())
    used = now["utilisation"]
    lines = {
        "run": f"{now['name']} ({now['run'][:12]}…)",
        "node": now["node"],
        "account": f"{now['account'][:16]}…",
        "doing": f"{now['phase']}{step} ({now['reason']})",
        "round": f"{now['state_round']} of {now['rounds_total']} agreed",
        "loss": loss,
        "speed": f"{now['tokens_per_second']:,.0f} tokens/s",
        "computing": "unknown yet" if used is None else f"{100 * used:.1f} % of the last round",
        "up": _traffic(now["bytes_up"]),
        "down": _traffic(now["bytes_down"]),
        "served": _peers(now["served"]),
        "fetched": _peers(now["fetched"]),
        "credit": f"{now['vested']:,} vested, {now['pending']:,} pending, {now['awaiting']:,} "
        f"awaiting agreement ({100 * now['share']:.1f} % of the model, with pending)",
        "rejected": ", ".join(f"{n} × {why}" for why, n in now["rejected"].items()) or "none",
        "ledger": f"{now['ledger_size']:,} entries, {now['cosigned_size']:,} of them cosigned",
        "memory": f"daemon {now['memory_daemon'] / 1e6:.0f} MB, "
        f"trainer {now['memory_trainer'] / 1e6:.0f} MB",
        "last round": f"{seconds} (seconds)" if seconds else "none yet",
    }
    if now["coordinator_lost"]:
        lines["coordinator"] = "does not answer; training goes on, this node keeps trying"
    if now["last_error"]:
        lines["last error"] = now["last_error"]
    for name, text in lines.items():
        print(f"{name:<12}{printable(text)}")
    return EXIT_OK


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


def _rate(text: str) -> int:
    """Megabits per second as bytes per second."""
    return round(types.number(0.01, 1e6)(text) * 1e6 / 8)


def _export(arguments: argparse.Namespace) -> int:
    from artel.node import export
    from artel.node.newest import newest

    with newest(arguments.home) as found:
        export.export(found.manifest, found.state, found.tokenizer, arguments.out, root=found.root)
    if arguments.json:
        print(json.dumps({"out": str(arguments.out), "state": found.root}))
    else:
        print(f"wrote state {found.root[:12]}… to {arguments.out}")
        print(f'load it with: AutoModelForCausalLM.from_pretrained("{arguments.out}")')
    return EXIT_OK


def _sample(arguments: argparse.Namespace) -> int:
    from artel.node import export
    from artel.node.newest import newest

    with newest(arguments.home) as found:
        text = export.sample(
            found.manifest,
            found.state,
            found.tokenizer,
            root=found.root,
            prompt=arguments.prompt,
            max_tokens=arguments.tokens,
            temperature=arguments.temperature,
            seed=arguments.seed,
        )
    sys.stdout.write(text + "\n")
    return EXIT_OK

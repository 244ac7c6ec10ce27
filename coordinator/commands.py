"""``artel coordinator``: publish a run, coordinate its rounds, and see how it goes."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from artel.coordinator.places import API_FILE
from artel.protocol import options
from artel.protocol.arguments import Parser
from artel.protocol.errors import EXIT_OK, DecodeError, Unreachable, UsageError
from artel.protocol.paths import expanded
from artel.protocol.terminal import printable

DEFAULT_HTTP = "127.0.0.1:8080"
DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/4200"
STATUS_TIMEOUT_S = 5.0
MAX_REPLY_BYTES = 4 << 20

_EXIT_CODES = """\
exit codes: 0 done · 1 a check failed · 2 wrong input · 3 the coordinator cannot be reached
            4 this machine lacks something (port, disk, lock) · 130 interrupted twice"""


def main(argv: list[str]) -> int:
    """Run ``artel coordinator ...``; returns the exit code.

    :raises ArtelError: for the caller to print
    """
    arguments = _parser().parse_args(argv)
    if arguments.command == "status":
        return _status(arguments)
    return _start(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="artel coordinator",
        description="Publish a run and coordinate its rounds.",
        epilog=f"example: artel coordinator start RUN.toml --home coordinator\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    start = commands.add_parser(
        "start",
        help="publish the run of a file and coordinate it until it is stopped",
        description="Publish the run of a file, print the invite for volunteers, and coordinate\n"
        "the run until Ctrl-C. Started again with the same --home it goes on where it was.",
        epilog="example: artel coordinator start RUN.toml --home coordinator "
        f"--http 0.0.0.0:8080\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    start.add_argument("file", type=Path, metavar="RUN.toml", help="what artel run new has written")
    start.add_argument(
        "--home",
        type=Path,
        required=True,
        metavar="DIR",
        help="keys, data, ledger; made if missing",
    )
    start.add_argument(
        "--http",
        type=options.endpoint,
        default=DEFAULT_HTTP,
        metavar="HOST:PORT",
        help=f"where the page and the API are served; port 0 takes a free one "
        f"(default: {DEFAULT_HTTP})",
    )
    start.add_argument(
        "--listen",
        type=options.listen,
        action="append",
        metavar="MULTIADDR",
        help="where nodes connect, may be given more than once; behind a router this port has to "
        f"be forwarded (default: {DEFAULT_LISTEN})",
    )
    start.add_argument(
        "--announce",
        type=options.announce,
        action="append",
        default=[],
        metavar="MULTIADDR",
        help="the address to tell volunteers instead of those that this machine sees, for example "
        "/dns4/run.example.org/tcp/4200",
    )
    start.add_argument("--json", action="store_true", help="print one JSON object when ready")
    start.add_argument("--log-json", action="store_true", help="events as JSON lines")

    status = commands.add_parser(
        "status",
        help="ask a running coordinator how the run goes",
        description="Ask a running coordinator how the run goes.",
        epilog=f"example: artel coordinator status --home coordinator\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = status.add_mutually_exclusive_group()
    where.add_argument("--url", metavar="URL", help=f"of its page (default: http://{DEFAULT_HTTP})")
    where.add_argument("--home", type=Path, metavar="DIR", help="its home, when on this machine")
    status.add_argument("--json", action="store_true", help="print the API's answer")
    for command in (start, status):
        command.add_argument("--verbose", action="store_true", help="log more, show tracebacks")
    return parser


def _start(arguments: argparse.Namespace) -> int:
    from artel.protocol.run_file import load_config

    load_config(arguments.file)  # whatever is wrong with it is said before anything takes time
    import asyncio

    from artel.coordinator.process import Startup, serve

    warning = options.only_here(arguments.announce)
    if warning:
        print(f"! {warning}", file=sys.stderr)
    host, port = arguments.http
    wanted = Startup(
        run_file=arguments.file,
        home=expanded(arguments.home),
        http_host=host,
        http_port=port,
        listen=tuple(arguments.listen or [DEFAULT_LISTEN]),
        announce=tuple(arguments.announce),
        as_json=arguments.json,
        verbose=arguments.verbose,
        log_json=arguments.log_json,
    )
    return asyncio.run(serve(wanted))


# --- status ---------------------------------------------------------------------------------------


def _status(arguments: argparse.Namespace) -> int:
    url = arguments.url or f"http://{DEFAULT_HTTP}"
    if arguments.home is not None:
        url = api_of(expanded(arguments.home))
    status = get_json(f"{url.rstrip('/')}/api/v1/status")
    if arguments.json:
        print(json.dumps(status, indent=2))
        return EXIT_OK
    try:
        print(render(status, url))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DecodeError(f"{url} is not an Artel coordinator of this version") from None
    return EXIT_OK


def api_of(home: Path) -> str:
    """The address of the API of the coordinator with this home.

    :raises Unreachable: when none has been started there
    """
    try:
        return str(json.loads((home / API_FILE).read_text(encoding="utf-8"))["http"])
    except (OSError, ValueError, KeyError, TypeError):
        raise Unreachable(
            f"no coordinator is running in {home}",
            "start it with: artel coordinator start RUN.toml --home DIR",
        ) from None


def get_json(url: str) -> dict[str, Any]:
    """A JSON object from a coordinator's API.

    :raises Unreachable: nobody answers
    :raises DecodeError: the answer is no JSON object
    :raises UsageError: the URL is none, or the API refuses the question
    """
    from http.client import HTTPException
    from urllib.error import HTTPError

    from artel.ledger.sync.source import http_opener, not_reached, through_proxy

    if not re.fullmatch(r"https?://[!-~]+", url):
        raise UsageError(f"{url!r} is no http address", "write it like http://127.0.0.1:8080")
    try:
        with http_opener(url).open(url, timeout=STATUS_TIMEOUT_S) as reply:
            body = reply.read(MAX_REPLY_BYTES + 1)
        value = json.loads(body)
    except HTTPError as error:
        with error:
            said = f"{url} answers {error.code} {printable(str(error.reason))}{through_proxy(url)}"
            raise UsageError(said) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise DecodeError(f"{url} does not answer with JSON", "check the address") from None
    except (OSError, HTTPException, ValueError) as error:
        found = not_reached(url, error)
        hint = found.hint if through_proxy(url) else "check --url or --home, and that it runs"
        raise Unreachable(f"no coordinator answers: {found.message}", hint) from None
    if not isinstance(value, dict):
        raise DecodeError(f"{url} does not answer with a JSON object", "check the address")
    return value


def render(status: dict[str, Any], url: str) -> str:
    """The answer of ``/api/v1/status`` as a short table."""
    from artel.ledger.entries.words import plural, short_key, short_peer

    ledger, nodes = status["ledger"], status["nodes"]
    attempt = f", attempt {status['attempt'] + 1}" if status["attempt"] else ""
    phases = ", ".join(f"{name} {s:.2f} s" for name, s in status["last_round"]["seconds"].items())
    lines = {
        "run": f"{status['name']} ({short_key(status['run'])})",
        "round": f"{status['round']} of {status['total']}, {status['phase']}{attempt}",
        "state": short_key(status["state_root"]),
        "loss": _loss(status["validation"]),
        "last round": phases or "-",
        "ledger": f"{plural(ledger['size'], 'entry', 'entries')}, root {short_key(ledger['root'])}",
        "page": url,
        "nodes": str(len(nodes)),
    }
    text = "\n".join(f"{label:<11} {printable(line)}" for label, line in lines.items())
    if not nodes:
        return text
    text += f"\n\n{'node':<10} {'doing':<12} {'step':>9} {'loss':>7} {'tok/s':>8} "
    text += f"{'up MB':>8} {'down MB':>8} {'heard':>7}"
    for node in nodes:
        loss = "-" if node["loss"] is None else f"{node['loss']:.3f}"
        step = f"{node['step']}/{node['steps']}" if node["steps"] else "-"
        text += "\n" + printable(
            f"{short_peer(node['node']):<10} {node['phase']:<12} {step:>9} {loss:>7} "
            f"{node['tokens_per_second']:>8,.0f} {node['bytes_up'] / 1e6:>8.2f} "
            f"{node['bytes_down'] / 1e6:>8.2f} {node['heard_s']:>5.0f} s"
        )
    return text


def _loss(validation: dict[str, Any]) -> str:
    first, last = validation["first"], validation["last"]
    if last is None:
        return "not evaluated yet"
    return f"{last['loss']:.4f} on the validation split (first {first['loss']:.4f})"

"""``artel coordinator``: publish a run, coordinate its rounds, and see how it goes."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from artel.coordinator.run_commands import RunFile
from artel.protocol import commandline, options
from artel.protocol.commandline import (
    Announce,
    AsJson,
    Bootstrap,
    Folder,
    Http,
    Listen,
    LogJson,
    Table,
    Verbose,
    fields,
    show,
    value,
)
from artel.protocol.errors import EXIT_INTERRUPTED, DecodeError, UsageError
from artel.protocol.options import Endpoint
from artel.protocol.paths import expanded

if TYPE_CHECKING:
    from artel.coordinator.process import Startup

DEFAULT_HTTP = Endpoint("127.0.0.1", 8080)
DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/4200"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """How a coordinator is reached, and what it says."""

    http: Annotated[
        Http,
        Parameter(help="where the page and the API are served; port 0 takes a free one"),
    ] = DEFAULT_HTTP
    listen: Annotated[
        Listen,
        Parameter(
            help="where nodes connect, may be given more than once; behind a router this port has "
            "to be forwarded"
        ),
    ] = (DEFAULT_LISTEN,)
    announce: Annotated[
        Announce,
        Parameter(
            help="the address to tell volunteers instead of those that this machine sees, for "
            "example /dns4/run.example.org/tcp/4200"
        ),
    ] = ()
    recompute: Annotated[
        int,
        value(options.whole(0, 10**6), "N"),
        Parameter(
            help="while it leads, compute one of N states here too before it is agreed on, by "
            "chance, also when members with standing carry the run; 1 for each, 0 for none but "
            "those on which they differ; it takes the time and the memory that it takes a node"
        ),
    ] = 10
    webhook: Annotated[
        str,
        value(options.http_url, "URL"),
        Parameter(
            help="post what happens to it as JSON (rounds, pauses, rollbacks, nodes that are left "
            "out, terms), signed by HOME/webhook.key; see docs/protocol.md"
        ),
    ] = ""
    release_every: Annotated[
        int | None,
        value(options.whole(0, 10**5), "MINUTES"),
        Parameter(
            help="while it leads, offer the newest model and some text of it on the page, made "
            "anew at most so often; 0 for never; otherwise each 15 minutes of a model of at most "
            "100 million parameters, and never of a larger one"
        ),
    ] = None
    bootstrap: Bootstrap = ()
    as_json: Annotated[AsJson, Parameter(help="print one JSON object when ready")] = False
    log_json: LogJson = False
    verbose: Verbose = False

    def startup(self, **more: Any) -> Startup:
        """What is started with these."""
        from artel.coordinator.process import Startup
        from artel.protocol.net.doors import named_doors

        own = {each.name: getattr(self, each.name) for each in fields_of(self)}
        if self.release_every is not None:
            own["release_every"] = 60.0 * self.release_every
        return Startup(**own | {"bootstrap": tuple(named_doors(self.bootstrap))}, **more)


app = commandline.group(
    "coordinator",
    "Publish a run and coordinate its rounds.",
    {
        0: "done",
        1: "a check failed",
        2: "wrong input",
        3: "the coordinator cannot be reached",
        4: "this machine lacks something (port, disk, lock)",
        130: "interrupted: a second Ctrl-C; the first one where there is nothing to stop in order",
    },
)


@app.command
def start(
    file: RunFile,
    /,
    *,
    home: Folder,
    source: Annotated[tuple[str, ...], Parameter(name="--from", metavar="TARGET")] = (),
    alone: bool = False,
    serving: ServingOptions = ServingOptions(),
) -> int:
    """Publish the run of a file and coordinate it until it is stopped.

    Prints the invite for volunteers, and goes on until Ctrl-C. Started again with the same --home
    it goes on where it was.

    example: artel coordinator start RUN.toml --home coordinator --http 0.0.0.0:8080

    :param file: what artel run new has written
    :param home: keys, data, ledger; made if missing
    :param source: who may have more of this run's ledger than the home, besides the members, which
        are asked anyhow: a mirror's folder, a home, http(s)://..., an invite, a multiaddr; may be
        given more than once
    :param alone: nobody else has any of this run: go on from the home's ledger though no member
        answers
    """
    from artel.ledger.sync.holding import hold
    from artel.protocol.run_file import load_config

    load_config(file)  # whatever is wrong with it is said before anything takes time
    for target in source:
        hold(target)[0].close()
    import asyncio

    from artel.coordinator.process import serve

    warning = options.only_here(serving.announce)
    if warning:
        print(f"! {warning}", file=sys.stderr)
    wanted = serving.startup(run_file=file, home=expanded(home), sources=source, alone=alone)
    return asyncio.run(serve(wanted))


@app.command
def standby(
    invite: Annotated[str, value(str, "INVITE")],
    /,
    *,
    home: Folder,
    node_key: Annotated[Path | None, value(options.path, "FILE")] = None,
    serving: ServingOptions = ServingOptions(),
) -> int:
    """Stand by for a run: follow it, and lead when its coordinator is gone.

    The organiser names this home's key (artel coordinator key) in the run file before the run is
    prepared. Started again with the same --home it goes on where it was.

    example: artel coordinator standby artel1.eyJwZWVycyI6… --home standby

    :param invite: the line that the organiser published
    :param home: keys, data, ledger; made if missing
    :param node_key: the key of a node that members may elect when no coordinator of the run is left
    """
    from artel.protocol.invite import Invite

    of_run = Invite.decode(invite)  # whatever is wrong with it is said before anything takes time
    import asyncio

    from artel.coordinator.process import serve

    owner = expanded(node_key) if node_key is not None else None
    wanted = serving.startup(run_file=None, home=expanded(home), invite=of_run, node_key=owner)
    return asyncio.run(serve(wanted))


@app.command
def key(*, home: Folder, as_json: AsJson = False, verbose: Verbose = False) -> int:
    """Print the key of a coordinator's home, for [coordination] standbys of a run file.

    example: artel coordinator key --home standby

    :param home: of the coordinator; made, with a new key, if missing
    """
    from artel.ledger.store.keyfiles import NODE_KEY, require_home_of
    from artel.protocol.identity import LOCK_FILE, load_or_create, no_home

    home = expanded(home)
    require_home_of("coordinator", home)
    try:
        found = {each.name for each in home.iterdir()} if home.exists() else set()
    except OSError as error:
        raise no_home(home, error) from None
    if found - {LOCK_FILE} and NODE_KEY not in found:
        raise UsageError(
            f"{home} holds other files, and no key of a coordinator",
            "name a new folder, which becomes the home of the coordinator: --home DIR",
        )
    identity = load_or_create(home / NODE_KEY)
    facts = {"key": identity.key, "peer": identity.peer_id}
    return show(facts, [identity.key], as_json=as_json)


# --- handover -------------------------------------------------------------------------------------


@app.command
def handover(*, home: Folder, as_json: AsJson = False, verbose: Verbose = False) -> int:
    """Let the next coordinator lead, between two rounds; this one stands by then.

    Waits until the next one leads. Where none is there, nothing changes. Ctrl-C takes the request
    back, unless the term is being ended already.

    example: artel coordinator handover --home coordinator

    :param home: of the coordinator that leads, on this machine
    """
    from artel.coordinator.handing_over import NOT_ASKED, hand_over
    from artel.ledger.entries.words import short_key

    # A service manager's signal takes the request back as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        facts = hand_over(expanded(home))
    except KeyboardInterrupt as given_up:
        print(str(given_up) or NOT_ASKED, file=sys.stderr)
        return EXIT_INTERRUPTED
    line = f"term {facts['term']} is led by {short_key(facts['leader'])}"
    return show(facts, [line], as_json=as_json)


# --- status ---------------------------------------------------------------------------------------


@app.command
def status(
    *,
    url: str | None = None,
    home: Folder | None = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> int:
    """Ask a running coordinator how the run goes.

    example: artel coordinator status --home coordinator

    :param url: of its page, otherwise that of a coordinator on this machine
    :param home: its home, when on this machine
    :param as_json: print the API's answer
    """
    from artel.ledger.store.keyfiles import require_home_of, status_of
    from artel.protocol.net.http import announced_in, fetch_object

    if url is not None and home is not None:
        raise UsageError("either --url or --home", "leave one of them out")
    if home is not None:
        home = expanded(home)
        require_home_of("coordinator", home, status_of("node", home))
        url = announced_in(home, "coordinator")
    url = (url or f"http://{DEFAULT_HTTP}").rstrip("/")
    if not re.fullmatch(r"https?://[!-~]+", url):
        raise UsageError(f"{url!r} is no http address", "write it like http://127.0.0.1:8080")
    answer = fetch_object(f"{url}/api/v1/status")
    try:
        return show(answer, [] if as_json else render(answer, url), as_json=as_json)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DecodeError(f"{url} is not an Artel coordinator of this version") from None


def render(status: dict[str, Any], url: str) -> list[str | Table]:
    """The answer of ``/api/v1/status`` for a person."""
    from artel.ledger.entries.words import plural, short_key

    if status["role"] == "standby":
        return [_standing_by(status, url)]
    ledger, nodes = status["ledger"], status["nodes"]
    attempt = f", attempt {status['attempt'] + 1}" if status["attempt"] else ""
    phases = ", ".join(f"{name} {s:.2f} s" for name, s in status["last_round"]["seconds"].items())
    run = fields(
        [
            ("run", f"{status['name']} ({short_key(status['run'])})"),
            ("round", f"{status['round']} of {status['total']}, {status['phase']}{attempt}"),
            ("leads", f"term {status['term']}"),
            ("state", short_key(status["state_root"])),
            ("loss", _loss(status["validation"])),
            ("last round", phases or "-"),
            (
                "ledger",
                f"{plural(ledger['size'], 'entry', 'entries')}, root {short_key(ledger['root'])}",
            ),
            ("page", url),
            ("nodes", str(len(nodes))),
        ]
    )
    if not nodes:
        return [run]
    heard = {node["node"]: f"{node['heard_s']:.0f} s" for node in nodes}
    return [run, "", nodes_table(nodes, "heard", heard)]


def _standing_by(status: dict[str, Any], url: str) -> Table:
    from artel.ledger.entries.words import plural, short_key

    ledger, leads = status["ledger"], "answers" if status["leads"] else "does not answer"
    leader = f"{short_key(status['leader'])}, {leads}" if status["leader"] else "not known yet"
    return fields(
        [
            ("run", f"{status['name']} ({short_key(status['run'])})"),
            ("stands by", f"term {status['term']} is led by {leader}"),
            ("round", f"{status['round']} of {status['total']}"),
            (
                "ledger",
                f"{plural(ledger['size'], 'entry', 'entries')}, root {short_key(ledger['root'])}",
            ),
            ("page", url),
        ]
    )


def nodes_table(nodes: Iterable[dict[str, Any]], head: str, last: Mapping[str, str]) -> Table:
    """What nodes do, as ``/api/v1/status`` has it.

    :param head: of the last column
    :param last: node to what stands there
    """
    from artel.protocol.identity import short_peer

    rows = [
        [
            short_peer(node["node"]),
            node["phase"],
            f"{node['step']}/{node['steps']}" if node["steps"] else "-",
            "-" if node["loss"] is None else f"{node['loss']:.3f}",
            f"{node['tokens_per_second']:,.0f}",
            f"{node['bytes_up'] / 1e6:.2f}",
            f"{node['bytes_down'] / 1e6:.2f}",
            last[node["node"]],
        ]
        for node in nodes
    ]
    heads = ["node", "doing", "step", "loss", "tok/s", "up MB", "down MB", head]
    return Table(rows, heads, right=range(2, 8))


def _loss(validation: dict[str, Any]) -> str:
    first, last = validation["first"], validation["last"]
    if last is None:
        return "not evaluated yet"
    return f"{last['loss']:.4f} on the validation split (first {first['loss']:.4f})"

"""``artel account``: the nodes of one owner on this machine, and a node of an account elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli.opening import KeyFile
from artel.node.account_link import ANSWER, ASK, Linked, LinkRequest, answer, ask
from artel.node.owner_commands import DEFAULT_HOME, NodeHome
from artel.protocol import commandline, identity, options
from artel.protocol.commandline import AsJson, Folder, Table, agreed, show, value
from artel.protocol.errors import EXIT_OK, ArtelError, UsageError
from artel.protocol.invite import PREFIX, Invite
from artel.protocol.paths import expanded

JOINED = Path("~/.local/share/artel")
"""Where ``artel join`` makes homes."""


def _run(text: str) -> str:
    """The run of an id, or of an invite."""
    return Invite.decode(text).run if PREFIX in text else options.run_id(text)


app = commandline.group(
    "account",
    "The nodes of one owner.",
    {0: "done", 1: "a ledger or a key file is damaged", 2: "wrong input", 4: "a home is in use"},
)


@app.command(name="nodes")
def nodes(*homes: Folder, as_json: AsJson = False) -> int:
    """Show the nodes of this machine by the accounts that they work for.

    Credit is what the home's own copy of the ledger says of the whole account, on all machines.

    example: artel account nodes

    :param homes: of nodes; otherwise ~/.artel/node and those that artel join made
    """
    found = homes or (DEFAULT_HOME, *sorted(expanded(JOINED).glob("*")))
    rows = [row for home in found if (row := _node(expanded(home)))]
    rows.sort(key=lambda row: (row["account"], row["home"]))
    heads = "account", "run", "node", "home", "runs", "nodes", "vested", "pending"
    shown = [[_shown(name, row) for name in heads] for row in rows]
    lines: list[str | Table] = [Table(shown, heads, (5, 6, 7))] if rows else ["no node is here"]
    return show({"nodes": rows}, lines, as_json=as_json)


def _shown(name: str, row: dict[str, Any]) -> str:
    found = row[name]
    if name in ("account", "node"):
        return f"{found[:16]}…" if found else "–"
    if isinstance(found, bool):
        return "yes" if found else "no"
    return f"{found:,}" if isinstance(found, int) else str(found)


def _node(home: Path) -> dict[str, Any] | None:
    """What a home says of its node; None where there is none."""
    from artel.ledger.sync.client import home_view
    from artel.protocol.manifest import read_manifest

    if not (home / "node.key").exists() or not (home / "manifest.json").exists():
        return None
    peer = identity.load(home / "node.key").peer_id
    manifest, _ = read_manifest(home / "manifest.json")
    row: dict[str, Any] = {"home": str(home), "run": manifest.config.run.name, "node": peer}
    row |= {"runs": identity.in_use(home), "account": "", "nodes": 0, "vested": 0, "pending": 0}
    try:
        with home_view(home) as view:
            state = view.state
    except ArtelError:  # it has not joined yet
        return row
    name = state.account_of(peer)
    if owned := state.accounts.get(name):
        both = {"vested": owned.vested, "pending": owned.pending}
        row |= {"account": name, "nodes": list(state.nodes.values()).count(name)} | both
    return row


@app.command
def link(
    line: Annotated[str, Parameter(show_default=False)] = "",
    /,
    *,
    home: NodeHome = DEFAULT_HOME,
    run: Annotated[
        str, value(_run, "RUN"), Parameter(help="its id or an invite, in a new home")
    ] = "",
    key: KeyFile = None,
    yes: Annotated[bool, Parameter(help="do not ask")] = False,
) -> int:
    """Let a node on another machine work for an account, whose key stays where it is.

    On the node's machine, without a line: it prints one. On the account's machine with that line:
    it prints an answer. On the node's machine with the answer: the node works for the account from
    its next start on. The lines are no secrets. A conviction of one node bars the whole account.

    example: artel account link --home node-2

    :param line: that the other machine has printed
    """
    home = expanded(home)
    if not line:
        print(_asked(home, run))
    elif ASK.prefix in line:
        print(_answered(home, ASK.decode(line, LinkRequest), key, yes))
    elif ANSWER.prefix in line:
        linked = Linked.decode(line)
        _require_no_key(home)
        linked.bound(identity.load(home / "node.key"))
        linked.save(home)
        print(f"{home} works for account {linked.key[:16]}… from its next start on")
    else:
        ASK.decode(line, LinkRequest)
    return EXIT_OK


def _require_no_key(home: Path) -> None:
    if (home / "account.key").exists():
        raise UsageError(
            f"{home} has an account of its own: there is an account.key",
            "give the node a new home, or move the key away, to where you find it again",
        )


def _asked(home: Path, run: str) -> str:
    from artel.ledger.store.keyfiles import require_home_of
    from artel.ledger.sync.client import home_view
    from artel.protocol.manifest import read_manifest

    require_home_of("node", home)
    _require_no_key(home)
    seq = 1
    if (home / "manifest.json").exists():
        _, run = read_manifest(home / "manifest.json")
    elif not run:
        raise UsageError(f"{home} has not joined a run yet", "say which: --run INVITE or --run ID")
    node = identity.load_or_create(home / "node.key")
    if (home / "ledger.sqlite3").exists():
        with home_view(home) as view:
            seq = view.state.node_seq.get(node.peer_id, 0) + 1
    print("on the machine of the account: artel account link LINE, with this line", file=sys.stderr)
    return ask(node, run, seq)


def _answered(home: Path, asked: LinkRequest, key: Path | None, yes: bool) -> str:
    from artel.ledger.store import keyfiles
    from artel.ledger.sync.client import home_view

    owner, name = identity.load(expanded(key) if key else home / keyfiles.ACCOUNT_KEY), ""
    if (home / "ledger.sqlite3").exists():
        with home_view(home) as view:
            if view.state.run == asked.run:
                name = view.state.keys.get(owner.key, "")
    for said in _told(asked, name or owner.key):
        print(said, file=sys.stderr)
    if not yes and not agreed("Take it on? [y/N] "):
        raise UsageError("it was not taken on", "answer y, or give --yes")
    print("on the node's machine: artel account link LINE, with this line", file=sys.stderr)
    return answer(asked, owner, keyfiles.recovery_of(home), name)


def _told(asked: LinkRequest, account: str) -> Iterator[str]:
    yield f"node    {asked.node}"
    yield f"run     {asked.run}"
    yield f"asks to work for account {account}"
    yield "What it does earns this account credit, and a conviction of it bars this account."

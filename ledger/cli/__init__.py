"""``artel ledger``: see, check and prove who contributed what, here or from anywhere.

A command reads a ledger either from a home (a copy of it, so a daemon may be running) or, with
``--from``, over HTTP or libp2p from anybody who holds it. It loads neither torch nor hivemind.

A module is imported when one of its commands is meant; what a command needs beyond its arguments it
imports when it runs, because a person waits for every import.
"""

from __future__ import annotations

from artel.protocol import commandline

COMMANDS = {
    "totals": ("status", "shares"),
    "mine": ("me",),
    "reading": ("log", "explain"),
    "proving": ("prove", "verify"),
    "checking": ("audit",),
    "rechecking": ("recheck", "accuse"),
    "comparing": ("compare",),
    "statements": ("admit", "dispute", "transfer", "rule", "alias", "split_view"),
    "keys": ("key",),
    "mirroring": ("mirror", "restore"),
}
"""The modules of this package, and what each of them adds."""

app = commandline.group(
    "ledger",
    "See, check and prove who contributed what to a run.\n\n"
    "example: artel ledger me\n\n"
    "example: artel ledger shares --from http://HOST:8080\n\n"
    "example: artel ledger verify entry-17.tlog-proof",
    {
        0: "it holds",
        1: "a check failed",
        2: "wrong input",
        3: "unreachable",
        4: "this machine lacks something (room for a copy, a working disk)",
    },
)

for _module, _commands in COMMANDS.items():
    for _command in _commands:
        app.command(f"{__name__}.{_module}:{_command}", name=_command.replace("_", "-"))

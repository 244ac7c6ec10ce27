"""``artel completion``: a shell completes commands and options with the Tab key."""

from __future__ import annotations

from typing import Literal

from artel import cli
from artel.protocol import commandline
from artel.protocol.errors import EXIT_OK

app = commandline.group("completion", None, {0: "done", 2: "wrong input"})


@app.default
def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
    """Print the script with which a shell completes commands and options.

    example: artel completion bash > ~/.local/share/bash-completion/completions/artel

    :param shell: the one that reads the script
    """
    script = cli.root().generate_completion(shell=shell)
    # Where no command or option fits, the name of a file may be meant.
    print(script.replace("\ncomplete -F ", "\ncomplete -o bashdefault -o default -F "))
    return EXIT_OK

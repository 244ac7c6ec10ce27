"""``artel completion``: a shell completes commands and options with the Tab key, and man shows
them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from artel import __version__, cli
from artel.protocol import commandline
from artel.protocol.errors import EXIT_OK

LEVELS = '=-^"'
"""With which reStructuredText underlines a group, a command, and what is below that."""
RULE = re.compile(rf"([{re.escape(LEVELS)}])\1+")

app = commandline.group("completion", None, {0: "done", 2: "wrong input"})


@app.default
def completion(shell: Literal["bash", "zsh", "fish", "man"], /) -> int:
    """Print the script with which a shell completes commands and options, or the man page.

    example: artel completion bash > ~/.local/share/bash-completion/completions/artel

    example: artel completion man > ~/.local/share/man/man1/artel.1

    :param shell: the one that reads the script
    """
    if shell == "man":
        print("\n".join(man_page(cli.root().generate_docs(output_format="rst"))))
        return EXIT_OK
    script = cli.root().generate_completion(shell=shell)
    # Where no command or option fits, the name of a file may be meant.
    print(script.replace("\ncomplete -F ", "\ncomplete -o bashdefault -o default -F "))
    return EXIT_OK


def man_page(text: str) -> Iterator[str]:
    """Lines of a page for man(1), of the reStructuredText that describes all commands."""
    yield f'.TH ARTEL 1 "" "Artel {__version__}" "User Commands"'
    yield ".SH NAME"
    about = cli.HELP.split("\n\n")[1].rstrip(".")
    yield rf"\fBartel\fP \- {about[0].lower()}{about[1:]}"
    path, lines = list[str](), [line.rstrip() for line in text.splitlines()]
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if RULE.fullmatch(below) and len(below) == len(line):
            path[LEVELS.index(below[0]) :] = [line]
            yield f'.SH "{roff(" ".join(path))}"'
        elif not line:
            yield ".PP"
        elif re.fullmatch(r"``.*``", line):
            yield from (".TP", rf"\fB{roff(line)}\fP")
        elif line.startswith("    artel "):  # how it is used
            yield rf"\fB{roff(line.strip())}\fP"
        elif not (RULE.fullmatch(line) or re.match(r"::|\.\. |   :", line)):
            yield roff(line.strip())
    codes = re.split(r" · |\n", cli.HELP.partition("exit codes: ")[2])
    yield from (".SH EXIT STATUS", ".nf", *(roff(" ".join(code.split())) for code in codes))


def roff(text: str) -> str:
    """A line of text as groff(7) takes it, with the marks of reStructuredText for strong."""
    plain = text.replace("\\", r"\e").replace("-", r"\-").replace("``", "")
    return re.sub(r"\*\*(.*?)\*\*", r"\\fB\1\\fP", re.sub(r"^([.'])", r"\\&\1", plain))

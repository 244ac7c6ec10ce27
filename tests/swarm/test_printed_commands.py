"""Commands that the documents, the help, the pages and other commands print work as printed.

Every command line is collected and run against one small ledger, with the placeholders of
``FILLED`` filled in. What cannot be run here is read by the real parser up to where it would start;
``ONLY_PARSED`` says what, and which test runs it. A line that is none of this fails.
"""

from __future__ import annotations

import ast
import asyncio
import html
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from cyclopts import CycloptsError

from artel import cli
from artel.coordinator.commands import DEFAULT_HTTP
from artel.ledger.entries.evidence import SplitView
from artel.ledger.fold.alias import open_alias
from artel.ledger.fold.effects import Fold
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.web.server import Gate
from artel.ledger.web.site import LedgerSite
from artel.protocol.errors import UsageError
from artel.protocol.invite import Invite
from client_world import become_member, claim, write_claims, write_key
from command_world import commands
from explorer_world import busy_world
from ledger_world import World
from places import ROOT

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
CODE = ("artel/cli.py", "protocol", "ledger", "coordinator", "node", "model")
PORT = str(DEFAULT_HTTP.port)

ONLY_PARSED = {
    r"artel (runs( .*)?|join .+)": "a network of peers: test_swarm_public.py runs them",
    r"artel node start( .*)?": "a daemon: test_swarm.py runs it",
    r"artel node status\b.*": "a run under way: test_swarm.py",
    r"artel model ((chat|eval|generate|serve)\b.*|\w+ .+)": "needs a state: test_exporting.py",
    r"artel node (doctor|logs|install-service)\b.*": "a home of a node: test_looking.py runs them",
    r"artel node (finish|leave)\b.*": "a node that runs: test_swarm_control.py does what they do",
    r"artel coordinator (start|status)\b.*": "a daemon: test_coordinator_commands.py runs it",
    r"artel coordinator (standby|handover)\b.*": "daemons: test_swarm_handover.py runs it",
    r"artel demo( .*)?": "a whole run: test_demo.py runs it",
    r"artel chaos( .*)?": "a whole run: test_chaos.py runs it",
    r"artel run (amend|pause|resume|stop|extend|status)\b.*": "a run: test_swarm_amended.py",
    r"artel account link\b.*": "two machines: test_account_link.py runs it",
    r"artel completion man": "all words of the help, in prose: test_arguments.py runs it",
    r"artel run track .*": "the page of a run: test_tracking.py runs it",
    r"artel run prepare .*": "tokenises: test_run_commands.py runs it on little text",
    r"artel node measure .*": "trains for a minute: test_measuring.py does what it does",
    r"artel ledger verify .*--states .*": "needs the blobs of rounds: test_ledger_recheck.py",
    r"artel ledger admit .*": "needs a run with a list: test_ledger_keys.py",
    r"artel ledger (recheck|accuse) .*": "needs the blobs of a round: test_ledger_recheck.py",
    r"artel ledger key recover .*": "needs a registered key: test_ledger_keys.py",
    r"artel ledger restore --home HOME": "needs damaged effects: test_ledger_mirror.py",
    r"artel ledger mirror .* --follow": "goes on until Ctrl-C; without --follow it is run",
}
BEFORE = {
    r"artel run check (my-run/RUN.toml|FILE)": ["artel run new my-run"],
    r"artel ledger verify entry-17.*": ["artel ledger prove 17"],
    r"artel ledger .* (--from )?my-copy": ["artel ledger mirror my-copy --from http://HOST:8080"],
    r"artel ledger rule .*": ["artel ledger dispute 412 --reason copied"],
    r"artel ledger alias --forget": ["artel ledger alias Ada"],
}
"""What has to be done first, where a text does it in other words."""
MORE = {
    r"artel ledger (dispute|transfer|rule|alias|split-view|key rotate)\b.*": (
        "--from URL --run RUN"
    ),
    r"artel ledger (transfer|alias) .*": "--yes",
    r"artel ledger key new\b.*": "--home new-home",
    r"artel coordinator key\b.*": "--home new-home",
    r"artel ledger restore\b.*": "--home other-home",
}
"""What is added, so that a line that asks a person, or the coordinator of a home, finds the test's;
``--home`` goes where nothing is yet."""


# --- the world ------------------------------------------------------------------------------------


@dataclass
class Printed:
    """Homes and a server of one run, in a folder whose name has a space in it."""

    folder: Path
    world: World
    url: str

    def filled(self, line: str) -> str:
        """A line with what stands for something replaced, by the table of placeholders."""
        world = self.world
        table = {
            rf"http://HOST:({PORT}|PORT)": self.url,
            r"http://(A-NODE|OTHER-NODE):PORT|\bOTHER-(NODE|URL)\b": "node-1",
            r"\bartel1\.…|\bINVITE\b": Invite(world.run, ("/ip4/127.0.0.1/tcp/9",)).encode(),
            r"\bVKEY\b": VerifierKey(world.origin, world.coordinator.public).encode(),
            r"\b(URL|TARGET|PEER)\b": self.url,
            r"\b(RUN|ID)\b(?!\.toml)": world.run,
            r"\b(HOME|DIR)\b": "node-1",
            r"\bMBIT\b": "20",
            r"\b(ROUND|INDEX)\b": "3",
            r"\b412\b(?!\.json)": world.earned(world.members[1], 7),
            r"\b6f1c…": world.owners[2].key,
            r"\b120000\b": "12800",
            r"(?<=run check )FILE\b": "my-run/RUN.toml",
            r"\bFILE\b": "split-view.json",
            r"\bNAME\b": "Ada",
            r"0x\.\.\.": "0x52908400098527886E0F7030069857D2E4169EE7",
            r"\bKEY\b": world.owners[0].key,
        }
        for pattern, value in table.items():
            line = re.sub(pattern, lambda _, value=value: value, line)
        return line


def write_home(home: Path, world: World, member: int | None = None) -> None:
    with LedgerStore.open(home / DATABASE_NAME, create=True, run=world.run) as store:
        store.append(world.leaves, world.sign)
    HeadStore(home / HEADS_NAME).close()
    if member is not None:
        become_member(home, world, member)
        write_claims(home, *(claim(world, world.members[member], number) for number in range(8)))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    """The files of the world, made once."""
    folder = tmp_path_factory.mktemp("template")
    world = busy_world()
    write_home(folder / "node-1", world, 0)
    write_home(folder / "node-2", world, 1)
    write_home(folder / "coordinator", world)
    other = [*world.leaves[:3], world.leaves[4]]
    evidence = SplitView.from_dict(world.split_view(world.leaves[:4], other))
    from artel.ledger.sync.leadership import Mandate
    from artel.ledger.sync.offline import write_evidence

    (folder / "split-view.json").write_bytes(write_evidence(evidence, Mandate(world.leaves[0])))
    (folder / "report.txt").write_text("it was copied\n")
    write_key(folder / "alice.key", world.organiser)
    return world, folder


@pytest.fixture
def printed(
    template: tuple[World, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Printed]:
    """A copy of it, with a server that takes entries in, as a coordinator does."""
    world, made = template
    folder = tmp_path / "a folder"
    shutil.copytree(made, folder)
    (folder / "user" / ".artel").mkdir(parents=True)
    (folder / "user" / ".artel" / "node").symlink_to(folder / "node-1")
    monkeypatch.setenv("HOME", str(folder / "user"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.chdir(folder)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    heads = HeadStore(folder / "server-heads.sqlite3")
    store = LedgerStore.open(folder / "coordinator" / DATABASE_NAME, run=world.run)
    fold = Fold.open(store)

    async def submit(leaf: bytes, _who: str) -> tuple[int, str]:
        note = store.append([leaf], world.sign, fold.beside)
        fold.settle()
        return store.size - 1, note

    async def set_alias(statement: bytes, _who: str) -> None:
        wish = open_alias(statement, fold.state)
        heads.set_alias(wish.account, wish.alias, wish.team, wish.time)

    async def serve() -> TestServer:
        app = Gate(None).application()
        site = LedgerSite(store, heads, lambda: fold.state, submit=submit, set_alias=set_alias)
        site.add_routes(app)
        server = TestServer(app)
        await server.start_server()
        return server

    server = asyncio.run_coroutine_threadsafe(serve(), loop).result(30)
    try:
        yield Printed(folder, world, str(server.make_url("")).rstrip("/"))
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        store.close()
        heads.close()


# --- collecting -----------------------------------------------------------------------------------


def command_lines(text: str, columns: bool = True) -> Iterator[str]:
    """Lines of a text that are commands, without what is said about them.

    :param columns: words behind much space are no part of a command
    """
    joined = re.sub(r"\\\n\s*", "", text)
    for line in joined.splitlines():
        line = re.sub(r"^\s*(examples?:|next:)?\s*", "", line).removeprefix(".venv/bin/")
        line = re.sub(r"^.* (with|offline): (?=artel )", "", line)
        if re.match(r"(artel|make) (?!GROUP|\d)", line):
            line = re.split(r"\s+#\s|\s{3,}" if columns else r"\s+#\s", line)[0]
            yield from (" ".join(part.split()) for part in re.sub(" > .*", "", line).split("&&"))


def of_documents() -> Iterator[tuple[str, str]]:
    for path in DOCUMENTS:
        text = path.read_text()
        name = path.relative_to(ROOT).as_posix()
        for block in re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S):
            yield from ((line, name) for line in command_lines(block, columns=False))
        outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        for code in re.findall(r"`([^`]+)`", outside):
            yield from ((line, name) for line in command_lines(" ".join(code.split())))


COMMANDS_OF_HELP = dict(commands())


def of_help() -> Iterator[tuple[str, str]]:
    yield from ((line, "artel --help") for line in command_lines(cli.HELP))
    for line, app in COMMANDS_OF_HELP.items():
        yield from ((example, f"{line} --help") for example in command_lines(app.help or ""))
    from artel.protocol.manifest_template import template

    comments = "\n".join(line.lstrip("# ") for line in template("my-run/RUN.toml").splitlines())
    yield from ((line, "RUN.toml") for line in command_lines(comments))


COMMANDS: dict[str, set[str]] = {}
for _line, _where in (*of_documents(), *of_help()):
    COMMANDS.setdefault(_line, set()).add(_where)


# --- running --------------------------------------------------------------------------------------


def parses(arguments: list[str]) -> bool:
    """Whether the real parser takes a command line (after ``artel``)."""
    try:
        cli.root().parse_args(arguments, print_error=False, exit_on_error=False)
    except (CycloptsError, UsageError) as error:
        print(error, file=sys.stderr)
        return False
    return True


def is_mention(arguments: list[str]) -> bool:
    """Whether it is the name of a command and nothing else, and that command exists."""
    return all(word.isidentifier() or word == "split-view" for word in arguments) and (
        len(arguments) == 1 or parses([*arguments, "--help"])
    )


def run(
    printed: Printed,
    line: str,
    capsys: pytest.CaptureFixture[str],
    done: set[str],
    *,
    printed_by_a_command: bool = False,
) -> None:
    """Run a line and whatever it prints."""
    if line in done:
        return
    done.add(line)
    for pattern, first in BEFORE.items():
        if re.fullmatch(pattern, line) and not printed_by_a_command:
            for other in first:
                run(printed, other, capsys, done)
    more = [extra for pattern, extra in MORE.items() if re.fullmatch(pattern, line)]
    wanted = [option for extra in more for option in extra.split() if option.startswith("--")]
    kept = line
    for option in wanted:
        kept = re.sub(rf" {option} \S+", "", kept)
    arguments = shlex.split(printed.filled(" ".join([kept, *more])), comments=True)[1:]
    if any(re.fullmatch(pattern, line) for pattern in ONLY_PARSED):
        assert parses(arguments), capsys.readouterr().err
        return
    if is_mention(arguments) and not parses(arguments):
        return
    capsys.readouterr()
    code = cli.main(arguments)
    shown = capsys.readouterr()
    assert code == 0, f"{shlex.join(arguments)}\n{shown.out}{shown.err}"
    for text in (shown.out, shown.err):
        for follow in command_lines(text):
            run(printed, follow, capsys, done, printed_by_a_command=True)


@pytest.mark.parametrize("line", sorted(line for line in COMMANDS if line.startswith("artel ")))
def test_a_command_works_as_printed(
    printed: Printed, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(printed, line, capsys, set())


def test_the_targets_of_make_exist() -> None:
    targets = sorted(line.split()[1] for line in COMMANDS if line.startswith("make "))
    assert {"demo", "test"} <= set(targets)
    subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True)


def test_every_port_in_a_text_is_the_coordinators() -> None:
    ports = {port for line in COMMANDS for port in re.findall(r"HOST:(\d+)", line)}
    assert ports == {PORT}


def test_the_documents_and_the_help_hold_commands() -> None:
    """So that a change of how they are written cannot make the tests above empty."""
    groups = {tuple(line.split()[:2]) for line in COMMANDS}
    assert {("artel", group) for group in cli.GROUPS} <= groups
    assert sum("README.md" in where for where in COMMANDS.values()) > 10
    for page in ("organiser", "volunteer", "auditor"):
        assert sum(f"docs/tutorials/{page}.md" in where for where in COMMANDS.values()) > 4
    assert sum("docs/ledger.md" in where for where in COMMANDS.values()) > 5


PAGES = ("/shares", "/entry/17", "/account/{account}")


def test_the_boxes_of_the_pages_hold_commands_that_work(
    printed: Printed, capsys: pytest.CaptureFixture[str]
) -> None:
    from urllib.request import urlopen

    lines: list[str] = []
    for path in PAGES:
        with urlopen(printed.url + path.format(account=printed.world.owners[0].key)) as reply:
            page = reply.read().decode()
        found = re.findall(r"<(?:pre|code)>(.*?)</(?:pre|code)>", page, re.S)
        lines += [line for box in found for line in command_lines(html.unescape(box))]
    assert len(set(lines)) >= 6
    done: set[str] = set()
    for line in lines:
        run(printed, line, capsys, done)


# --- hints ----------------------------------------------------------------------------------------


def texts_of(path: Path) -> Iterator[str]:
    """String constants of a module, f-strings with X for what they hold; without docstrings."""
    tree = ast.parse(path.read_text())
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(id(node.value))
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "X" for part in node.values
            )


def takes_value(line: str, option: str) -> bool:
    """Whether an option of a command is more than a switch."""
    app = COMMANDS_OF_HELP[line]
    found = app.assemble_argument_collection() if app.default_command else ()
    return any(option in item.names and item.resolved_hint is not bool for item in found)


def hinted(text: str) -> Iterator[list[str]]:
    """The commands within a sentence, without the words that follow."""
    groups = "|".join(cli.GROUPS)
    text = re.sub(r"</?\w+>", "\n", text)
    for match in re.finditer(rf"\bartel ({groups})\b([^`;→\n]*)", text):
        line = f"artel {match[1]}"
        words = [match[1]]
        value = False  # whether an option waits for its value
        for word in match[2].replace("'", "").replace('"', "").split():
            end = word.endswith((",", ".", ")", ":")) and word != "0x..."
            word = word.rstrip(",.):") if end else word
            if f"{line} {word}" in COMMANDS_OF_HELP:
                line = f"{line} {word}"
            elif word.startswith("--"):
                value = takes_value(line, word)
                words += [word] if word != "--verbose" else []  # of every command
                if end:
                    break
                continue
            elif not (value or re.fullmatch(r"-o|[A-Z0-9x.-]+|.*[/.…X].*|\d+", word)):
                break
            words.append(word)
            value = False
            if end:
                break
        if "X" not in words[:2]:  # made of parts, as the examples of the help
            yield words


HINTS = sorted(
    {
        shlex.join(words)
        for name in CODE
        for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
        for text in texts_of(path)
        for words in hinted(text)
    }
)


@pytest.mark.parametrize("hint", HINTS)
def test_a_command_in_a_hint_is_one(hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The real parser takes it, with numbers and names for what stands for them."""
    table = {"INDEX": "3", "ROUND": "3", "HOST:PORT": "h:1", "MBIT": "2", "AMOUNT": "1", "X": "3"}
    table |= {"ID": 64 * "0", "N": "3"} | ({"X": 64 * "0"} if "admit" in hint else {})
    arguments = [table.get(word, word) for word in shlex.split(hint)]
    assert is_mention(arguments) or parses(arguments), capsys.readouterr().err


def test_hints_are_found() -> None:
    assert len(HINTS) > 30

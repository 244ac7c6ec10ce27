"""An invite is read however people paste it, and anything else is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artel import cli
from artel.ledger.sync.holding import hold
from artel.ledger.sync.lightnode import PeerHolder
from artel.protocol.errors import UsageError
from artel.protocol.identity import Identity
from artel.protocol.invite import MAX_PEERS, PREFIX, Invite
from artel.protocol.pasted import MAX_PASTED

PEERS = [Identity.from_seed(bytes([number]) * 32).peer_id for number in range(MAX_PEERS)]
INVITE = Invite("ab" * 32, tuple(f"/ip4/198.51.100.7/tcp/4200/p2p/{peer}" for peer in PEERS[:2]))
LINE = INVITE.encode()

UNSEEN = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u202a"
SPACES = " \t\n\r\u00a0\u2009\u202f\u3000"
FRAMES = ['""', "''", "<>", "``", "“”", "‘’", "„“", "«»", "()", "[]", "{}", "**", "__"]
BEFORE = [
    "",
    "join: ",
    "Here it is:\n\n",
    "artel node start --join ",
    "it begins with artel1. and: ",
]
AFTER = ["", ".", ",", ";", "!", " ", "\n", ".\n-- \nthe organiser", " (until May)", "…"]


def wrapped(line: str, width: int, prefix: str, end: str) -> str:
    """As mail breaks and quotes a long line."""
    parts = [line[start : start + width] for start in range(0, len(line), width)]
    return prefix + f"{end}{prefix}".join(parts)


@st.composite
def pasted(draw: st.DrawFn) -> tuple[Invite, str]:
    """An invite, and a text that holds it."""
    peers = draw(st.lists(st.sampled_from(PEERS), min_size=1, max_size=MAX_PEERS, unique=True))
    invite = Invite(
        draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        tuple(f"/ip4/198.51.100.7/tcp/4200/p2p/{peer}" for peer in peers),
    )
    line = invite.encode()
    for place in draw(st.lists(st.integers(0, len(line)), max_size=6)):
        line = line[:place] + draw(st.sampled_from(UNSEEN + SPACES)) + line[place:]
    frame = draw(st.sampled_from(["  ", *FRAMES]))
    line = frame[0] + line + frame[1]
    line = draw(st.sampled_from(BEFORE)) + line + draw(st.sampled_from(AFTER))
    prefix = draw(st.sampled_from(["", "> ", ">> ", "> > ", "| ", "\t"]))
    return invite, wrapped(
        line, draw(st.integers(20, 900)), prefix, draw(st.sampled_from(["\n", "\r\n"]))
    )


@given(pasted())
def test_however_it_is_pasted_it_is_the_same_invite(case: tuple[Invite, str]) -> None:
    invite, text = case
    assert Invite.decode(text) == invite


@pytest.mark.parametrize(
    "text",
    [
        *(f"{frame[0]}{LINE}{frame[1]}" for frame in FRAMES),
        f"{LINE}.",
        f"{LINE},",
        f"> {LINE}",
        wrapped(LINE, 72, "> ", "\r\n"),
        f"\ufeff{LINE[:50]}\u200b{LINE[50:]}",
        f"join: {LINE} see you",
        f'artel node start --join "{LINE}" --home artel-node',
    ],
)
def test_what_people_did(text: str) -> None:
    assert Invite.decode(text) == INVITE


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "artel1", PREFIX, PREFIX * 400, f"{LINE[:-1]}", LINE[7:], LINE.upper()),
        *(f"{PREFIX}{'a' * 100}.00000000", LINE.replace("artel1", "artel2"), "\udcff" + LINE[:60]),
        LINE[:40] + "," + LINE[40:],
        "x" * (MAX_PASTED + 1),
        LINE + " " * MAX_PASTED,
    ],
)
def test_garbage_is_one_clear_error(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        Invite.decode(text)
    assert refused.value.hint
    assert len(refused.value.diagnostics()) < 300


@pytest.mark.parametrize("left", range(len(PREFIX), len(LINE)))
def test_a_line_that_was_cut_off_is_said_to_be(left: int) -> None:
    with pytest.raises(UsageError, match="cut short, its end is missing"):
        Invite.decode(LINE[:left])
    with pytest.raises(UsageError, match="a part of the invite is missing, or was changed"):
        Invite.decode(PREFIX + LINE[left + 1 :] if left < len(LINE) - 10 else PREFIX + LINE[20:])


@given(st.text(max_size=200), st.binary(max_size=60))
def test_any_text_is_an_invite_or_a_usage_error(text: str, data: bytes) -> None:
    for candidate in (text, PREFIX + text, PREFIX + data.hex() + "." + data.hex()[:8]):
        with pytest.raises(UsageError):
            Invite.decode(candidate)


def test_an_address_that_would_steer_a_terminal_is_refused() -> None:
    for peer in ("/ip4/1.2.3.4/tcp/1\x1b]0;x\x07/p2p/Q", "no address /p2p/Q", "/p2p/a\nb"):
        with pytest.raises(UsageError):
            Invite.decode(Invite("ab" * 32, (peer,)).encode())


@pytest.mark.parametrize("text", [LINE, f'"{LINE}"', f"<{LINE}>.", f"join: {LINE}"])
def test_readers_of_ledgers_take_it_as_well(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(PeerHolder, "__init__", lambda _, peers: asked.append(peers))
    _, run = hold(text)
    assert (run, asked) == (INVITE.run, [INVITE.peers])


@pytest.mark.parametrize("text", ["x" * 300, "x" * 5000, f"{PREFIX}{'x' * 5000}", "ftp://x"])
def test_what_is_no_holder_is_wrong_input(text: str) -> None:
    with pytest.raises(UsageError):
        hold(text)


@pytest.mark.parametrize("command", ["audit", "compare", "status"])
def test_an_invite_is_longer_than_a_files_name_can_be(
    command: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".artel/node").mkdir(parents=True)
    target = [] if command != "status" else ["--from"]
    assert cli.main(["ledger", command, *target, LINE[:300]]) == 2
    assert "invite" in capsys.readouterr().err


def test_a_url_may_have_the_words_of_an_invite() -> None:
    holder, run = hold("http://artel1.example.org:8080")
    assert (holder.name, run) == ("http://artel1.example.org:8080", "")

"""Ending a term on purpose: what ``artel coordinator handover`` asks of a home.

Whoever may write into a home is its owner: a file there asks the coordinator that runs in it
(:mod:`.term_watch`), and its page says what comes of it.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from pathlib import Path
from typing import Any

from artel.ledger.store.keyfiles import require_home_of
from artel.protocol import files
from artel.protocol.errors import CheckFailed, Unreachable, UsageError
from artel.protocol.identity import in_use
from artel.protocol.net.http import announced_in, fetch_object, start_of

REQUEST_FILE, REQUEST = "handover", b"another coordinator is to lead\n"
"""In the home: its owner wants another coordinator to lead. A file that says something else is
somebody else's."""
PATIENCE_S = 600.0
"""A round may have to end first."""
POLL_S = 0.3
NOT_ASKED = "nothing was asked for yet: the term goes on"
NO_OTHER = "the run names no other coordinator ([coordination] standbys)"
"""Why a term is not ended, for good: what a run names is part of it."""
_HINT = (
    "ask again when that has changed; a coordinator of the run is started with: "
    "artel coordinator standby INVITE --home DIR"
)
_NO_OTHER_HINT = (
    "name one in the run file of the next run; if the coordinator of this one is gone, members "
    "elect one of themselves"
)


def hand_over(home: Path, patience: float = PATIENCE_S) -> dict[str, Any]:
    """Let the coordinator that runs in a home end its term, and wait until the next one leads.

    :returns: ``term`` and ``leader`` (key, hex) of then
    :raises UsageError: the coordinator in this home does not lead, or it is no coordinator's
    :raises CheckFailed: nobody could lead after it; it goes on
    :raises Unreachable: none runs there (any more), or nobody has led in time
    :raises KeyboardInterrupt: it was given up; says what becomes of what was asked
    """
    require_home_of("coordinator", home, "name that of the one that leads: --home DIR")
    before = _status(home)
    if before["role"] != "leader":
        raise UsageError(
            f"the coordinator in {home} stands by; term {before.get('term')} is another one's",
            "ask on the machine of the coordinator that leads",
        )
    request, until = home / REQUEST_FILE, time.monotonic() + patience
    files.require_ours(request, REQUEST.__eq__)
    written = False
    try:
        with files.told(home):
            files.write(request, REQUEST)
        written = True
        while time.monotonic() < until:
            time.sleep(POLL_S)
            if not in_use(home):
                raise Unreachable(
                    f"the coordinator in {home} has stopped; the others lead when its term is over",
                    f"when it is to stand by, start it again: {start_of('coordinator', home)}",
                )
            asked = is_asked(home)
            with contextlib.suppress(Unreachable):  # while it changes its part
                now = _status(home)
                if now.get("term", -1) > before["term"]:
                    return {"term": now["term"], "leader": now["leader"]}
                if now.get("not_ending") and not asked:
                    hint = _NO_OTHER_HINT if now["not_ending"] == NO_OTHER else _HINT
                    raise CheckFailed(f"the term goes on: {now['not_ending']}", hint)
        raise Unreachable(
            f"nobody leads another term after {patience:.0f} s",
            _given_up(home, before["term"], written=written),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_given_up(home, before["term"], written=written)) from None
    finally:
        take(home)  # also when whoever asked gives up


def _given_up(home: Path, term: int, *, written: bool) -> str:
    """What becomes of what was asked, when nobody waits for it any more."""
    if take(home):
        return f"the request is taken back: term {term} goes on"
    if not written:
        return NOT_ASKED
    return (
        f"term {term} is being ended, and that goes on; see: artel coordinator status --home "
        f"{shlex.quote(str(home))}"
    )


def is_asked(home: Path) -> bool:
    """Whether the owner of a home wants its term to end."""
    try:
        with (home / REQUEST_FILE).open("rb") as file:
            return file.read(len(REQUEST) + 1) == REQUEST
    except OSError:
        return False


def take(home: Path) -> bool:
    """Take the request away: it is answered, or taken back. One of the two gets it."""
    if not is_asked(home):
        return False
    try:
        (home / REQUEST_FILE).unlink()
    except FileNotFoundError:
        return False
    return True


def _status(home: Path) -> dict[str, Any]:
    return fetch_object(f"{announced_in(home, 'coordinator')}/api/v1/status")

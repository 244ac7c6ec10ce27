"""Templates become pages here: everything that is shown is escaped, and runs nothing of its own.

Whatever a template shows is escaped by Jinja and goes through :func:`_shown` before, which leaves
no character that does not print: marks that turn the direction of text are among these. A name that
a template misspells is an error (StrictUndefined), never an empty place. The content security
policy would let nothing else than our own files run or load even if all of that failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.entries.words import differs, plural, printable, short_key, units
from artel.ledger.web.assets import url_of_asset
from artel.protocol.identity import short_peer

TEMPLATES = Path(__file__).with_name("templates")
STYLE = (TEMPLATES / "explorer.css").read_text(encoding="utf-8")
NOTHING = "–"
"""Stands for a value that is not known."""


class Templates:
    """The shared templates, and those of further folders; filters say how values are written."""

    def __init__(self) -> None:
        self._loader = FileSystemLoader(TEMPLATES)
        self._environment = Environment(
            loader=self._loader,
            autoescape=True,
            auto_reload=False,
            undefined=StrictUndefined,
            finalize=_shown,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals |= {"style": Markup(STYLE), "asset": url_of_asset}
        self._environment.filters |= {
            "n": number,
            "percent": percent,
            "bytes": size_of,
            "plural": plural,
            "units": units,
            "differs": differs,
            "key": short_key,
            "peer": short_peer,
            "why": reasons.explain,
            "title_of": entries.title,
            "query": query,
            "cited": cited,
            "date": date,
            "lasts": lasts,
            "labelled": labelled,
            "tojson_text": partial(json.dumps, allow_nan=False, separators=(",", ":")),
        }

    def add(self, folder: Path) -> None:
        """Templates that are not the ledger's."""
        self._loader.searchpath.append(str(folder))

    def render(self, template: str, **values: Any) -> str:
        """A whole page or picture; ``values`` are what the template's names stand for."""
        return self._environment.get_template(template).render(values)


def _shown(value: object) -> object:
    """What a ``{{ }}`` writes: markup of templates as it is, of all else what prints."""
    if isinstance(value, Markup):
        return value
    return NOTHING if value is None else printable(str(value))


# --- how values are written -----------------------------------------------------------------------


def number(value: float | None, form: str = ",", unit: str = "") -> str | None:
    """``1,234``, or in another form; None stays None."""
    return None if value is None else f"{value:{form}}{unit}"


def percent(share: float | None, digits: int = 3) -> str | None:
    """A share (0 to 1) with enough digits to tell small ones apart."""
    return None if share is None else f"{100 * share:.{digits}f} %"


def size_of(count: int | None) -> str | None:
    """Bytes, in units that people read."""
    if count is None or count < 10_000:
        return number(count, unit=" B")
    return f"{count / 1e6:,.2f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


def query(values: Mapping[str, object]) -> str:
    """The query of a link, without what is not set."""
    found = urlencode({name: value for name, value in values.items() if value not in ("", None)})
    return f"?{found}" if found else ""


def cited(sentence: str) -> list[str]:
    """A sentence in parts: every second one is the index of an entry that it names."""
    return re.split(r"entry ([0-9]{1,15})\b", sentence)


def lasts(seconds: float) -> str:
    """A stretch of time in the two largest units that it has, or in seconds."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    units = ((days, "d"), (hours, "h"), (minutes, "min"))
    return " ".join([f"{count} {unit}" for count, unit in units if count][:2])


def date(seconds: float, form: str) -> str:
    """A moment in seconds since 1970, in UTC and a form of :meth:`datetime.strftime`."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime(form)
    except (OverflowError, ValueError, OSError):  # a witness may sign any number
        return NOTHING


def labelled(cells: Markup, names: Sequence[str]) -> Markup:
    """The cells of a row, each with the name of its column for where there is no room for a head.

    Only markup of templates has ``<td``; what it shows was escaped before.
    """
    first, *rest = cells.split("<td")
    named = (
        Markup('<td data-label="{}"').format(n.rstrip("<")) + c
        for n, c in zip(names, rest, strict=True)
    )
    return Markup("").join((first, *named))

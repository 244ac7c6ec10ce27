"""A release: the model as others load it, with all that there is to know of it, and its proofs.

A folder that ``from_pretrained`` loads, and beside the weights: a card (README.md), what the run
was (``manifest.json``, signed by its organiser), what happened in it (``ledger/``, a mirror that
``artel ledger audit`` checks), how the loss fell (``losses.jsonl``, ``loss.svg``), how well the
model does (``evaluation.json``), a CycloneDX bill of materials (``bom.cdx.json``), what ties the
weights to the ledger (``state.rest``), and an OpenSSF model signature (``model.sig``).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter
from safetensors import SafetensorError

from artel.ledger.fold.holdings import shares_facts
from artel.ledger.sync import client
from artel.ledger.sync.mirror import mirror
from artel.ledger.web import chart
from artel.ledger.web.render import Templates
from artel.model import bom, card, evaluation, generating, pretrained, signing
from artel.model.evaluation import Evaluation
from artel.model.held import HeldState
from artel.model.pretrained import LoadedModel
from artel.model.release import LossRow, Release
from artel.protocol import files
from artel.protocol.errors import DecodeError, ResourceError
from artel.protocol.net.http import fetch_object
from artel.protocol.state import state_rest
from artel.protocol.units import readable

CARD, BOM, PLOT = "README.md", "bom.cdx.json", "loss.svg"
MANIFEST, LEDGER, REST = "manifest.json", "ledger", "state.rest"
LOSSES, EVALUATION = "losses.jsonl", "evaluation.json"
METRICS = "metrics.jsonl"
"""In the home of a coordinator: what nodes reported of the rounds."""
SAMPLE_TOKENS = 80
MAX_LINE_BYTES = 1 << 20

_ROW, _ROWS = TypeAdapter(LossRow), TypeAdapter(list[LossRow])


def export(found: HeldState, out: Path, home: Path, source: str = "") -> Release:
    """Write the release of a state.

    :param out: the directory; must not exist yet or be empty
    :param home: that holds the state
    :param source: URL of the run's page, for the losses of a run whose coordinator is elsewhere
    :raises UsageError: ``out`` is in use
    :raises DecodeError: a file is damaged
    :raises CheckFailed: an id does not fit
    :raises ResourceError: a file cannot be read or written
    :raises Unreachable: nobody answers at the URL
    """
    files.require_empty(out)
    rows = _asked(source) if source else _kept(home / METRICS)
    loaded = pretrained.load(found)
    try:
        with _taking_the_place_of(out) as folder:
            made = _written(loaded, rows, folder, home, found)
            # safetensors lets nobody else read its file, whatever the umask; a release is shared.
            mode = (folder / CARD).stat().st_mode
            for path in folder.iterdir():
                if path.is_file():
                    path.chmod(stat.S_IMODE(mode))
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"cannot write the model to {out}: {getattr(error, 'strerror', None) or error}",
            f"it needs about {readable(4 * found.manifest.model.parameters)} there",
        ) from None
    return made


def _written(
    loaded: LoadedModel, rows: list[LossRow], folder: Path, home: Path, found: HeldState
) -> Release:
    pretrained.write(loaded, folder)
    (folder / REST).write_bytes(state_rest(loaded.state))
    (folder / MANIFEST).write_bytes(found.manifest_file.read_bytes())
    owner, signed = "", signing.available()
    if signed:
        public = signing.public_key(home)
        owner, word = signing.vouch(home, loaded.run, loaded.root, public)
        (folder / signing.PUBLIC_KEY).write_text(public)
        if word:
            (folder / signing.VOUCHER).write_bytes(word)
    with client.home_view(home) as view:
        mirror(view, folder / LEDGER)
        made = Release(
            loaded=loaded,
            shares=shares_facts(view.state, view.aliases),
            size=view.log.size,
            head=view.log.root_at(view.log.size).hex(),
            final=view.finality.size,
            total=view.state.founded.total,
            amendments=view.state.amendments,
            tokens=sum(view.state.node_tokens.values()),
            losses=rows,
            evaluations=_evaluated(loaded, found.blobs),
            sample=generating.text(loaded, "", SAMPLE_TOKENS, generating.Sampling()),
            owner=owner,
            signed=signed,
        )
    _tell(made, folder)
    if signed:
        signing.sign(folder, home)  # last, as it covers all that lies here
    return made


def _evaluated(loaded: LoadedModel, blobs: Path) -> list[Evaluation]:
    """On the held-out text; nothing where the home does not have that."""
    with contextlib.suppress(ResourceError):
        return evaluation.held_out(loaded, blobs)
    return []


def _tell(made: Release, folder: Path) -> None:
    """Write what is for people and for programs that read no ledger."""
    lines = [_ROW.dump_json(row).decode() for row in made.losses]
    (folder / LOSSES).write_text("".join(f"{line}\n" for line in lines))
    facts = {
        "run": made.loaded.run,
        "round": made.loaded.round,
        "state": made.loaded.root,
        "evaluations": [one.facts() for one in made.evaluations],
        "sample": made.sample,
    }
    (folder / EVALUATION).write_text(json.dumps(facts, indent=2) + "\n")
    validation = [(row.round, row.validation) for row in made.losses if row.validation is not None]
    training = [(row.round, row.loss) for row in made.losses if row.loss is not None]
    drawn = chart.loss(validation, training, made.total)
    if drawn is not None:
        title = f"{made.loaded.manifest.config.run.name}, {made.tokens:,} tokens"
        (folder / PLOT).write_text(Templates().render("loss.svg", title=title, chart=drawn))
    (folder / CARD).write_text(card.text(made, plotted=drawn is not None))
    weights = sorted(folder.glob("*.safetensors"))
    (folder / BOM).write_text(json.dumps(bom.of(made, weights), indent=2) + "\n")


# --- losses ---------------------------------------------------------------------------------------


def _kept(path: Path) -> list[LossRow]:
    """What a coordinator's home knows; the last line of a round counts. Nothing elsewhere."""
    rows = dict[int, LossRow]()
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                with contextlib.suppress(ValueError):  # cut off by a kill; no facts are lost
                    row = _ROW.validate_json(line)
                    rows[row.round] = row
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}") from None
    return [rows[number] for number in sorted(rows)]


def _asked(url: str) -> list[LossRow]:
    """What the page of a run says, of its newest 1,000 rounds."""
    found = fetch_object(f"{url.rstrip('/')}/api/v1/rounds?last=1000")
    try:
        return sorted(_ROWS.validate_python(found.get("rounds")), key=lambda row: row.round)
    except ValueError:
        raise DecodeError(
            f"{url} does not show the rounds of a run", "name the page of the run's coordinator"
        ) from None


# --- folders --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _taking_the_place_of(out: Path) -> Iterator[Path]:
    """A new directory whose files are in ``out`` when the block ends, all of them or none.

    An empty directory that is there already stays the one that it is: it may be somebody's mount.
    """
    there = out.is_dir()
    unfinished = files.unfinished(out / "model" if there else out)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if there:
            for path in sorted(unfinished.iterdir()):
                path.rename(out / path.name)
        else:
            unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)

"""Checks a release, by nothing but its folder: the weights are the state that the ledger names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artel.ledger.sync.audit import audit_log
from artel.ledger.sync.source import FolderSource
from artel.model import exporting, signing
from artel.protocol import content, dsse, model
from artel.protocol.errors import CheckFailed, ResourceError, UsageError
from artel.protocol.manifest import Manifest, read_manifest
from artel.protocol.state import HEADER_BYTES, decode_header, root_with_rest
from artel.protocol.telling import Tell, silent
from artel.protocol.tokenizer import MAX_TOKENIZER_BYTES

MAX_CONFIG_BYTES = 1 << 20
WRITTEN_LATER = ("architectures", "bos_token_id", "dtype", "eos_token_id", "use_cache")
"""Keys of a model's config.json that say nothing of what it computes from a whole text."""
MAX_REST_BYTES = 4 << 20
"""A page, less than a chunk, and the hashes of the largest momentum."""


@dataclass(frozen=True)
class Verified:
    """What holds of a release."""

    run: str
    round: int
    state: str
    entries: int
    """Of the ledger, all of which were replayed."""
    final: int
    owner: str
    """The key that vouches for the signature, in hex; "" where nothing is signed."""
    role: str
    """What that key is in the run."""
    signature: str
    """ "holds", "not checked" where the extra is missing, or "none"."""


def verify(folder: Path, run: str = "", progress: Tell = silent) -> Verified:
    """Check all of a release.

    :param run: id of the run that it has to be of; "" takes the folder's word
    :raises CheckFailed: something does not hold
    :raises DecodeError: a file is not what its name says
    :raises UsageError: the folder is no release
    :raises ResourceError: a file cannot be read
    """
    if not (folder / exporting.REST).is_file():
        raise UsageError(f"{folder} is no release", "artel model export writes one")
    manifest, found = read_manifest(folder / exporting.MANIFEST)
    if run and found != run:
        raise CheckFailed(f"this is of run {found[:12]}…, not of {run[:12]}…")
    report, audited = audit_log(
        FolderSource(folder / exporting.LEDGER), (), found, full=True, progress=progress
    )
    assert audited is not None  # of a run, and all of it
    tokens = _read(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)
    if content.content_id(tokens) != manifest.tokenizer.id:
        raise CheckFailed("tokenizer.json is not the tokenizer of the run")
    rest = _read(folder / exporting.REST, MAX_REST_BYTES)
    number = decode_header(rest[:HEADER_BYTES]).round
    states = audited.state.states
    root = root_with_rest(_weights(folder, manifest), rest)
    if number >= len(states) or states[number] != root:
        raise CheckFailed(f"the weights are not those of the state that was agreed on ({number})")
    owner, signature = _signed(folder, found, root)
    return Verified(
        run=found,
        round=number,
        state=root,
        entries=report.size,
        final=audited.final,
        owner=owner,
        role=_role(owner, manifest, audited.state.accounts),
        signature=signature,
    )


def _require_model(folder: Path, manifest: Manifest) -> None:
    """:raises CheckFailed: config.json describes another model than the manifest: with the same
    weights it computes something else"""
    ours = model.transformers_config(manifest.config.model, manifest.tokenizer.vocab_size)
    try:
        theirs = json.loads(_read(folder / "config.json", MAX_CONFIG_BYTES))
        known = json.loads(ours.to_json_string())
        for one in (theirs, known):
            for name in WRITTEN_LATER:
                one.pop(name, None)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise CheckFailed("config.json is not the description of a model") from None
    if wrong := sorted(
        name for name in theirs.keys() | known.keys() if theirs.get(name) != known.get(name)
    ):
        raise CheckFailed(f"config.json is not of the run's model: {', '.join(wrong)[:200]}")


def _weights(folder: Path, manifest: Manifest) -> Any:
    """The parameters as transformers reads them, (N,)."""
    _require_model(folder, manifest)
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if size > 5 * manifest.model.parameters + (1 << 20):
        raise CheckFailed(f"the weights take {size:,} bytes, more than the run's model can")
    try:
        module = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,  # nor asked for: the folder is a stranger's
            dtype="float32",
        )
    except Exception as error:  # the library has no common base class
        raise CheckFailed(f"transformers cannot load {folder}: {model.last_line(error)}") from None
    return model.read_parameters(module)


def _signed(folder: Path, run: str, root: str) -> tuple[str, str]:
    """Who vouches for the signature, and whether it holds."""
    if not (folder / signing.SIGNATURE).exists():
        return "", "none"
    owner = ""
    if (folder / signing.VOUCHER).exists():
        owner, word = signing.open_voucher(_read(folder / signing.VOUCHER, dsse.MAX_ENVELOPE_BYTES))
        signer = _read(folder / signing.PUBLIC_KEY, 4096).decode("ascii", "replace")
        if (word.run, word.state, word.signer) != (run, root, signer):
            raise CheckFailed(f"{signing.VOUCHER} is the word for another release")
    if not signing.available():
        return owner, "not checked"
    signing.verify(folder)
    return owner, "holds"


def _role(owner: str, manifest: Manifest, accounts: Any) -> str:
    if not owner:
        return ""
    if owner == manifest.organiser:
        return "the run's organiser"
    return "an account of the run" if owner in accounts else "nobody in this ledger"


def words(found: Verified) -> Iterator[tuple[str, str]]:
    """For a person."""
    yield "run", found.run
    yield "weights", f"state {found.state[:12]}… after {found.round:,} rounds, as agreed on"
    yield "ledger", f"{found.entries:,} entries replayed, {found.final:,} of them final"
    yield (
        "signature",
        {
            "holds": "holds: nothing was changed",
            "not checked": f"not checked: {signing.EXTRA}",
            "none": "none",
        }[found.signature],
    )
    yield "signed for", f"{found.owner[:16]}…, {found.role}" if found.owner else ""


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > most:
        raise CheckFailed(f"{path} is longer than it can be")
    return data

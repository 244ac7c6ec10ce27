"""A state as a model that others can use: a Hugging Face directory, or a sample of text.

``export`` writes what ``from_pretrained`` of ``AutoModelForCausalLM`` and ``AutoTokenizer`` load:
config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json and a
README.md that names the run and the state root.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from artel.protocol import content, dsse, files, tokenizer
from artel.protocol.errors import CheckFailed, ResourceError, UsageError
from artel.protocol.manifest import Manifest, open_manifest
from artel.protocol.units import readable

SMALL_MODEL = 20_000_000
"""Parameters below which sampling takes one thread."""


def export(
    manifest: Path,
    state: Path | BufferedReader,
    tokenizer_file: Path | None,
    out: Path,
    *,
    root: str = "",
) -> None:
    """Write a state as a Hugging Face directory.

    :param manifest: file of the signed manifest
    :param state: file of the state, or its path; a node may delete the latter meanwhile
    :param tokenizer_file: the run's tokenizer.json; None for a run on bytes
    :param out: the directory; must not exist yet or be empty
    :param root: what the state's root has to be; "" for anything
    :raises UsageError: ``out`` is in use, or the tokenizer is missing
    :raises DecodeError: a file is damaged or belongs to another run
    :raises CheckFailed: a signature or an id does not fit
    :raises ResourceError: a file cannot be read or written
    """
    _require_empty(out)
    run, run_id = _read_manifest(manifest)
    tokens = _tokenizer_json(run, tokenizer_file)
    module, round, root = _load(run, state, root)
    try:
        with _taking_the_place_of(out) as unfinished:
            module.save_pretrained(unfinished)
            _write_tokenizer(run, tokens, unfinished)
            (unfinished / "README.md").write_text(_card(run, run_id, round, root))
            # safetensors lets nobody else read its file, whatever the umask; an export is shared.
            mode = (unfinished / "README.md").stat().st_mode
            for path in unfinished.iterdir():
                path.chmod(stat.S_IMODE(mode))
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"cannot write the model to {out}: {getattr(error, 'strerror', None) or error}",
            f"it needs about {readable(4 * run.model.parameters)} there",
        ) from None


def _require_empty(out: Path) -> None:
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out} is not empty", "name a directory that does not exist yet")
    except OSError as error:
        raise UsageError(f"cannot use {out}: {error.strerror}", "name another directory") from None


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


def sample(
    manifest: Path,
    state: Path | BufferedReader,
    tokenizer_file: Path | None,
    *,
    root: str = "",
    prompt: str = "",
    max_tokens: int = 200,
    temperature: float = 0.8,
    seed: int = 0,
) -> str:
    """Text from the model: what it writes after ``prompt``, without the prompt.

    :param max_tokens: tokens to write; an end-of-text token ends it before
    :param temperature: 0 takes the likeliest token, 1 the model's own distribution
    :raises ArtelError: as :func:`export`
    """
    import torch

    run, _ = _read_manifest(manifest)
    tokens = _tokenizer_json(run, tokenizer_file)
    codec = tokenizer.load(run.config.tokenizer.kind, tokens)
    module, _, _ = _load(run, state, root)
    module.eval()
    module.config.use_cache = False
    # The model saw documents behind an end-of-text token, and never more than seq_len at once.
    ids = [codec.end_of_text, *(int(token) for token in codec.encode([prompt])[0])]
    first = len(ids)
    window = run.config.data.seq_len
    random = torch.Generator().manual_seed(seed)
    with _few_threads(run), torch.inference_mode():
        while len(ids) < first + max_tokens:
            context = torch.tensor([ids[-window:]])  # (1, at most seq_len)
            logits = module(input_ids=context).logits[0, -1].float()  # (vocab,)
            if temperature == 0:
                token = int(logits.argmax())
            else:
                chances = torch.softmax(logits / temperature, dim=-1)
                token = int(torch.multinomial(chances, 1, generator=random))
            if token == codec.end_of_text:
                break
            ids.append(token)
    return codec.decode(ids[first:])


def bytes_tokenizer_json() -> bytes:
    """The bytes tokenizer as a ``tokenizer.json``: BPE over 256 bytes without any merge.

    Token b is byte b, and 256 is end-of-text, exactly as :class:`protocol.tokenizer.ByteTokenizer`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {char: byte for byte, char in enumerate(tokenizer.byte_characters())}
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    # Without the regular expression that splits words: with no merges it would change nothing.
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(tokenizer.END_OF_TEXT, special=True)])
    return bytes(library.to_str().encode())


@contextlib.contextmanager
def _few_threads(run: Manifest) -> Iterator[None]:
    """One thread for a small model: splitting its operations costs more than it saves, and on a
    machine with other work the threads wait for each other most of the time."""
    import torch

    before = torch.get_num_threads()
    if run.model.parameters < SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read_manifest(path: Path) -> tuple[Manifest, str]:
    try:
        with path.open("rb") as file:
            return open_manifest(file.read(dsse.MAX_ENVELOPE_BYTES + 1))
    except OSError as error:
        raise ResourceError(f"cannot read the manifest {path}: {error.strerror}") from None


def _tokenizer_json(run: Manifest, path: Path | None) -> bytes | None:
    """The bytes of the run's tokenizer file, None for a run on bytes."""
    if run.config.tokenizer.kind == "bytes":
        return None
    if path is None:
        raise UsageError("this run has a BPE tokenizer", "pass its tokenizer.json")
    try:
        with path.open("rb") as file:
            data = file.read(tokenizer.MAX_TOKENIZER_BYTES + 1)
    except OSError as error:
        raise ResourceError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    if content.content_id(data) != run.tokenizer.id:
        raise UsageError(
            f"{path} is not the tokenizer of this run", "fetch the one that the manifest names"
        )
    return data


def _load(run: Manifest, source: Path | BufferedReader, wanted: str) -> tuple[Any, int, str]:
    """The model with the numbers of a state; the state's round and root.

    :raises CheckFailed: the root is not the one that is wanted
    """
    from artel.protocol import model
    from artel.protocol.state import read_state, state_root

    module: Any = model.build(run.config.model, run.tokenizer.vocab_size, run.config.run.seed)
    state = read_state(source, model.layout_of(module))
    # Of what was read, and not of what is under that name by now.
    root = state_root(state)
    if wanted and root != wanted:
        raise CheckFailed(
            f"the state {wanted[:12]}… is damaged on this disk",
            "start the node: it finds that out, and fetches the state again",
        )
    model.load_parameters(module, state.params)
    # transformers puts these into config.json; generation starts and ends with them.
    end = tokenizer.load("bytes", None).end_of_text if run.config.tokenizer.kind == "bytes" else 0
    for part in (module.config, module.generation_config):
        if part is not None:
            part.bos_token_id = part.eos_token_id = end
    return module, state.round, root


def _write_tokenizer(run: Manifest, tokens: bytes | None, out: Path) -> None:
    (out / "tokenizer.json").write_bytes(bytes_tokenizer_json() if tokens is None else tokens)
    settings = {
        "bos_token": tokenizer.END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "eos_token": tokenizer.END_OF_TEXT,
        "model_max_length": run.config.data.seq_len,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _card(run: Manifest, run_id: str, round: int, root: str) -> str:
    """The model card: enough to find the run and to check the numbers against it."""
    about = run.config.run
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
        f"# {about.name}\n\n{about.description}\n\n"
        f"Trained by the nodes of an Artel run; this is its state after {round} rounds.\n\n"
        f"- run id: `{run_id}`\n- state root: `{root}`\n"
        f"- parameters: {run.model.parameters:,}\n\n"
        f"{run.config.ownership.statement}\n"
    )

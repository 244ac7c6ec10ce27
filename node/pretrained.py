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
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from artel.node.newest import Newest
from artel.protocol import content, files
from artel.protocol.errors import CheckFailed, ResourceError
from artel.protocol.manifest import Manifest
from artel.protocol.tokenizer import END_OF_TEXT, MAX_TOKENIZER_BYTES, Tokenizer
from artel.protocol.units import readable

SMALL_MODEL = 20_000_000
"""Parameters below which sampling takes one thread: splitting the operations costs more than it
saves, and on a machine with other work the threads wait for each other most of the time."""


def export(found: Newest, out: Path) -> None:
    """Write a state as a Hugging Face directory.

    :param out: the directory; must not exist yet or be empty
    :raises UsageError: ``out`` is in use
    :raises DecodeError: a file is damaged
    :raises CheckFailed: an id does not fit
    :raises ResourceError: a file cannot be read or written
    """
    files.require_empty(out)
    run, tokens = found.manifest, _tokenizer_json(found)
    module, round = _load(found)
    try:
        with _taking_the_place_of(out) as unfinished:
            module.save_pretrained(unfinished)
            _write_tokenizer(run, tokens, unfinished)
            (unfinished / "README.md").write_text(_card(found, round))
            # safetensors lets nobody else read its file, whatever the umask; an export is shared.
            mode = (unfinished / "README.md").stat().st_mode
            for path in unfinished.iterdir():
                path.chmod(stat.S_IMODE(mode))
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"cannot write the model to {out}: {getattr(error, 'strerror', None) or error}",
            f"it needs about {readable(4 * run.model.parameters)} there",
        ) from None


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
    found: Newest,
    prompt: str,
    *,
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

    run, codec = found.manifest, Tokenizer(_tokenizer_json(found))
    module, _ = _load(found)
    module.eval()
    module.config.use_cache = False
    if run.model.parameters < SMALL_MODEL:
        torch.set_num_threads(1)
    # The model saw documents behind an end-of-text token, and never more than seq_len at once.
    ids = [codec.end_of_text, *(int(token) for token in codec.encode([prompt])[0])]
    first = len(ids)
    window = run.config.data.seq_len
    random = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
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


def _tokenizer_json(found: Newest) -> bytes:
    """The bytes of the run's tokenizer file."""
    path = found.tokenizer
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TOKENIZER_BYTES + 1)
    except OSError as error:
        raise ResourceError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    if content.content_id(data) != found.manifest.tokenizer.id:
        raise CheckFailed(
            f"{path} is not the tokenizer of this run", "start the node: it is fetched again"
        )
    return data


def _load(found: Newest) -> tuple[Any, int]:
    """The model with the numbers of a state, and the state's round.

    :raises CheckFailed: the file holds another state
    """
    from artel.protocol import model
    from artel.protocol.state import read_state, state_root

    run = found.manifest
    module: Any = model.build(run.config.model, run.tokenizer.vocab_size, run.config.run.seed)
    state = read_state(found.state, model.layout_of(module))
    # Of what was read, and not of what is under that name by now.
    if state_root(state) != found.root:
        raise CheckFailed(
            f"the state {found.root[:12]}… is damaged on this disk",
            "start the node: it finds that out, and fetches the state again",
        )
    model.load_parameters(module, state.params)
    # transformers puts these into config.json; generation starts and ends with them.
    for part in (module.config, module.generation_config):
        if part is not None:
            part.bos_token_id = part.eos_token_id = Tokenizer.end_of_text
    return module, state.round


def _write_tokenizer(run: Manifest, tokens: bytes, out: Path) -> None:
    (out / "tokenizer.json").write_bytes(tokens)
    settings = {
        "bos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "model_max_length": run.config.data.seq_len,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _card(found: Newest, round: int) -> str:
    """The model card: enough to find the run and to check the numbers against it."""
    run, about = found.manifest, found.manifest.config.run
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
        f"# {about.name}\n\n{about.description}\n\n"
        f"Trained by the nodes of an Artel run; this is its state after {round} rounds.\n\n"
        f"- run id: `{found.run}`\n- state root: `{found.root}`\n"
        f"- parameters: {run.model.parameters:,}\n\n"
        f"{run.config.ownership.statement}\n"
    )

"""A state as the model that it is: loaded here, and as files that others load.

``write`` makes what ``from_pretrained`` of ``AutoModelForCausalLM`` and ``AutoTokenizer`` read:
config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artel.model.held import HeldState
from artel.protocol import content
from artel.protocol.errors import CheckFailed, ResourceError
from artel.protocol.manifest import Manifest
from artel.protocol.state import State
from artel.protocol.tokenizer import END_OF_TEXT, MAX_TOKENIZER_BYTES, Tokenizer

SMALL_MODEL = 20_000_000
"""Parameters below which a model takes one thread: splitting the operations costs more than it
saves, and on a machine with other work the threads wait for each other most of the time."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with the numbers of an agreed state, fp32 on the CPU, in evaluation mode."""

    run: str
    manifest: Manifest
    root: str
    state: State
    module: Any
    tokenizer: Tokenizer
    tokenizer_file: bytes

    @property
    def round(self) -> int:
        """Rounds that made it."""
        return self.state.round


def load(found: HeldState) -> LoadedModel:
    """Read a state and check that it is what the ledger names.

    :raises DecodeError: a file is damaged
    :raises CheckFailed: an id does not fit
    :raises ResourceError: a file cannot be read
    """
    import torch

    from artel.protocol import model, objective
    from artel.protocol.state import read_state, state_root

    run, tokens = found.manifest, _tokenizer_json(found)
    module: Any = model.build(run.config.model, run.tokenizer.vocab_size, run.config.run.seed)
    state = read_state(found.state, model.layout_of(module))
    # Of what was read, and not of what is under that name by now.
    if state_root(state) != found.root:
        raise CheckFailed(
            f"the state {found.root[:12]}… is damaged on this disk",
            "start the program of this home: it finds that out, and fetches the state again",
        )
    model.load_parameters(module, state.params)
    # transformers puts these into config.json; generation starts and ends with them.
    for part in (module.config, module.generation_config):
        if part is not None:
            part.bos_token_id = part.eos_token_id = Tokenizer.end_of_text
    module.eval()
    objective.without_memory(module)
    if run.model.parameters < SMALL_MODEL:
        torch.set_num_threads(1)
    return LoadedModel(found.run, run, found.root, state, module, Tokenizer(tokens), tokens)


def _tokenizer_json(found: HeldState) -> bytes:
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


def write(loaded: LoadedModel, folder: Path) -> None:
    """Write the model and its tokenizer into a folder that is there.

    :raises OSError, SafetensorError: it cannot be written
    """
    loaded.module.config.use_cache = True  # for those who load it; here whole windows go in
    loaded.module.save_pretrained(folder)
    loaded.module.config.use_cache = False
    (folder / "tokenizer.json").write_bytes(loaded.tokenizer_file)
    settings = {
        "bos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "model_max_length": loaded.manifest.config.data.seq_len,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")

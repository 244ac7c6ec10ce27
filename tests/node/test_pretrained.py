"""Export: others load the model and compute what the run's own model computes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from artel.node import pretrained
from artel.protocol import content, model, tokenizer
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.state import State, read_state, write_state
from trainer_world import World, make_world

TEXT = "def café(x):\n    return  x + 1  # 'ünï' ✓\n"


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    made = make_world(tmp_path_factory.mktemp("world"), bpe=request.param == "bpe")
    # Numbers far from the seed's, so that a forgotten load shows.
    layout = model.layout_of(model.empty(made.run.config.model, made.run.tokenizer.vocab_size))
    noise = np.random.default_rng(1).standard_normal(layout.parameters).astype(np.float32) * 0.1
    write_state(made.state, State(7, layout.digest, noise, np.zeros_like(noise)))
    return made


def test_transformers_loads_the_model_and_computes_the_same(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with world.newest() as found:
        pretrained.export(found, tmp_path / "model")
    assert capsys.readouterr() == ("", "")  # no progress bars of the library either
    card = (tmp_path / "model" / "README.md").read_text()
    assert content.file_content_id(world.state) in card
    assert "after 7 rounds" in card
    assert f"{world.run.model.parameters:,}" in card
    (tmp_path / "any").touch()  # what the umask lets others do; an export is there to be shared
    usual = (tmp_path / "any").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "model").iterdir()} == {usual}

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    own = model.build(world.run.config.model, world.run.tokenizer.vocab_size, 1).eval()
    state = read_state(world.state, model.layout_of(own))
    model.load_parameters(own, state.params)
    assert np.array_equal(model.read_parameters(loaded), state.params)
    tokens = torch.randint(0, world.run.tokenizer.vocab_size, (2, 32))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens).logits, own(input_ids=tokens).logits)


def test_the_exported_tokenizer_gives_the_tokens_of_the_run(world: World, tmp_path: Path) -> None:
    with world.newest() as found:
        pretrained.export(found, tmp_path / "model")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    ours = tokenizer.Tokenizer(world.tokenizer.read_bytes())
    ids = [int(token) for token in ours.encode([TEXT])[0]]
    assert theirs(TEXT)["input_ids"] == ids
    assert theirs.decode(ids) == TEXT
    assert theirs.eos_token_id == ours.end_of_text
    assert len(theirs) == world.run.tokenizer.vocab_size


def test_a_sample_follows_its_seed_and_ends_in_time(world: World) -> None:
    def text(**keys: float) -> str:
        with world.newest() as found:
            return pretrained.sample(found, "def ", max_tokens=40, **keys)  # type: ignore[arg-type]

    assert text(seed=1) == text(seed=1)
    assert text(seed=1) != text(seed=2)
    assert text(temperature=0, seed=1) == text(temperature=0, seed=2)


def test_wrong_inputs_are_refused_before_anything_is_written(world: World, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").touch()
    with world.newest() as found, pytest.raises(UsageError, match="not empty"):
        pretrained.export(found, used)
    cut = tmp_path / "cut.bin"
    cut.write_bytes(world.state.read_bytes()[:-4])
    with world.newest(cut) as found, pytest.raises(DecodeError):
        pretrained.export(found, tmp_path / "model")
    with world.newest() as found, pytest.raises(CheckFailed, match="not the tokenizer"):
        pretrained.export(dataclasses.replace(found, tokenizer=cut), tmp_path / "model")
    assert not (tmp_path / "model").exists()

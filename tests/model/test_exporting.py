"""Export: others load the model, compute what the run's own computes, and check all of it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from transformers import AutoModelForCausalLM, AutoTokenizer

from artel import cli
from artel.ledger.store import keyfiles
from artel.model import card, evaluation, generating, pretrained, signing
from artel.model.generating import Sampling
from artel.model.held import held
from artel.model.pretrained import LoadedModel
from artel.protocol import identity, model, tokenizer
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.manifest import open_manifest
from artel.protocol.run_config import TextSource
from artel.protocol.state import read_state, root_with_rest, state_rest
from model_world import make_home, write_states
from trainer_world import World, make_world

TEXT = "def café(x):\n    return  x + 1  # 'ünï' ✓\n"
LOSS = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
windows = torch.tensor(json.load(sys.stdin))
with torch.no_grad():
    print(float(model(input_ids=windows, labels=windows).loss))
assert not [name for name in sys.modules if name.startswith("artel")]
"""
"""What anybody does who has transformers and no program of ours."""


@dataclass(frozen=True)
class Made:
    """A home, and what was exported from it."""

    world: World
    home: Path
    state: Path
    out: Path
    said: dict[str, object]


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    world = make_world(folder / "world", bpe=request.param == "bpe")
    states = write_states(world, folder, 2)
    home = make_home(world, folder / "home", [path.name for path in states])
    for path in states:
        shutil.copy(path, home / "blobs")
    keyfiles.create(home / keyfiles.ACCOUNT_KEY)
    (home / "metrics.jsonl").write_text(
        '{"round": 0, "validation": 5.5, "loss": 5.0, "members": 3}\n'
        '{"round": 1, "validation": 4.5, "loss": 4.0}\n{"round": 1, "vali'
    )
    out = folder / "model"
    said, heard = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(heard):
        assert cli.main(["model", "export", str(out), "--home", str(home), "--json"]) == 0
    assert heard.getvalue() == ""  # no progress bars of the library either
    return Made(world, home, states[-1], out, json.loads(said.getvalue()))


def loaded(made: Made) -> LoadedModel:
    with held(made.home) as found:
        return pretrained.load(found)


def test_transformers_alone_computes_the_same(made: Made) -> None:
    own = model.build(made.world.run.config.model, made.world.run.tokenizer.vocab_size, 1).eval()
    state = read_state(made.state, model.layout_of(own))
    model.load_parameters(own, state.params)
    theirs = AutoModelForCausalLM.from_pretrained(made.out).eval()
    assert np.array_equal(model.read_parameters(theirs), state.params)
    tokens = torch.randint(0, made.world.run.tokenizer.vocab_size, (2, 32))
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=tokens).logits, own(input_ids=tokens).logits)


def test_the_loss_on_the_card_is_that_of_the_held_out_text(made: Made) -> None:
    shard = np.fromfile(made.world.shard, "<u2").astype(int)
    whole = len(shard) - 1
    windows = [
        shard[start : start + 33].tolist()
        for start in (number * (whole // 32) // 64 * 32 for number in range(64))
    ]
    done = subprocess.run(
        [sys.executable, "-c", LOSS, made.out],
        input=json.dumps(windows),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert made.said["loss"] == {"validation": pytest.approx(float(done.stdout), rel=1e-5)}
    [said] = json.loads((made.out / "evaluation.json").read_text())["evaluations"]
    assert (said["tokens"], said["loss"]) == (64 * 32, made.said["loss"]["validation"])  # type: ignore[index]
    assert f"{said['loss']:.4f}" in (made.out / "README.md").read_text()


def test_the_card_says_what_the_model_is(made: Made) -> None:
    text = (made.out / "README.md").read_text()
    assert made.state.name in text
    assert "after 2 of 10 rounds" in text
    assert f"{made.world.run.model.parameters:,}" in text
    assert "![Loss by round](loss.svg)" in text
    assert "loss of 5.5000 for state 0 and of 4.5000 for state 1" in text
    assert identity.load(made.home / "account.key").key in text
    _, run = open_manifest((made.out / "manifest.json").read_bytes())
    assert f"artel model verify . --run {run}" in text
    assert len((made.out / "losses.jsonl").read_text().splitlines()) == 2
    (made.out.parent / "any").touch()  # what the umask lets others do; an export is there for all
    usual = (made.out.parent / "any").stat().st_mode
    assert {path.stat().st_mode for path in made.out.iterdir() if path.is_file()} == {usual}


def test_words_of_strangers_are_words_on_the_card() -> None:
    hostile = "<script>x</script> | [a](javascript:b) `c` **d** ‮e\n# f"
    said = card.plain(hostile)
    assert not re.search(r"(?<!\\)[<>|`*\[\]#]", said)
    assert "\n" not in said
    assert "‮" not in said


def test_the_exported_tokenizer_gives_the_tokens_of_the_run(made: Made) -> None:
    theirs = AutoTokenizer.from_pretrained(made.out)
    ours = tokenizer.Tokenizer(made.world.tokenizer.read_bytes())
    ids = [int(token) for token in ours.encode([TEXT])[0]]
    assert theirs(TEXT)["input_ids"] == ids
    assert theirs.decode(ids) == TEXT
    assert theirs.eos_token_id == ours.end_of_text
    assert len(theirs) == made.world.run.tokenizer.vocab_size


# --- bill of materials, signature, ledger ---------------------------------------------------------


def test_cyclonedx_own_library_takes_the_bill_of_materials(made: Made) -> None:
    text = (made.out / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    model_part = json.loads(text)["metadata"]["component"]
    digest = subprocess.run(
        ["sha256sum", made.out / "model.safetensors"], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert model_part["components"][0]["hashes"] == [{"alg": "SHA-256", "content": digest}]


def signature_holds(folder: Path) -> bool:
    tool = Path(sys.executable).with_name("model_signing")
    command = [sys.executable, "-m", "model_signing"] if not tool.exists() else [tool]
    command += ["verify", "key", folder, "--signature", folder / "model.sig"]
    command += ["--public_key", folder / "signer.pub"]
    return subprocess.run(command, capture_output=True, timeout=120).returncode == 0


def copied(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.out, tmp_path / "copy"))


def test_openssf_own_tool_verifies_the_signature(made: Made, tmp_path: Path) -> None:
    out = copied(made, tmp_path)
    assert signature_holds(out)
    (out / "README.md").write_text((out / "README.md").read_text() + "\n")
    assert not signature_holds(out)
    assert (made.home / "release.key").stat().st_mode & 0o777 == 0o600


def verified(out: Path, *more: str) -> int:
    return cli.main(["model", "verify", str(out), "--json", *more])


def test_a_release_is_verified_by_its_folder_alone(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(made, tmp_path)
    assert verified(out) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["round"], found["state"], found["signature"]) == (2, made.state.name, "holds")
    assert found["owner"] == identity.load(made.home / "account.key").key
    assert found["role"] == "nobody in this ledger"
    assert verified(out, "--run", "0" * 64) == 1


def test_changed_weights_are_found_without_any_signature(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(made, tmp_path)
    (out / signing.SIGNATURE).unlink()
    assert verified(out) == 0
    assert json.loads(capsys.readouterr().out)["signature"] == "none"
    weights = bytearray((out / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (out / "model.safetensors").write_bytes(weights)
    assert verified(out) == 1
    assert "not those of the state that was agreed on" in capsys.readouterr().err


def test_another_model_or_tokenizer_around_the_same_weights_is_found_without_any_signature(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(made, tmp_path)
    (out / signing.SIGNATURE).unlink()
    for name, change in (
        ("config.json", lambda facts: facts | {"tie_word_embeddings": "odd"}),
        ("tokenizer.json", lambda facts: facts | {"normalizer": None, "added": 1}),
    ):
        before = (out / name).read_bytes()
        (out / name).write_text(json.dumps(change(json.loads(before))))
        assert verified(out) == 1
        assert f"{name} is not" in capsys.readouterr().err
        (out / name).write_bytes(before)
    assert verified(out) == 0


@pytest.mark.parametrize(
    "name", ["signer.json", "signer.pub", "state.rest", "manifest.json", "model.sig", "config.json"]
)
def test_a_file_of_another_is_one_clear_error(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = copied(made, tmp_path)
    (out / name).write_bytes((out / name).read_bytes()[:-20] + os.urandom(20))
    assert verified(out) in (1, 2)
    assert capsys.readouterr().err.count("error: ") == 1


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("parameters", [5, (1 << 18) - 1024, 1 << 18, 700_001])
def test_parameters_and_the_rest_give_the_state_root(
    parameters: int, momentum: bool, tmp_path: Path
) -> None:
    from artel.protocol.state import State, state_root

    params = np.arange(parameters, dtype=np.float32)
    state = State(3, "1" * 64, params, params[::-1].copy() if momentum else None)
    rest, root = state_rest(state), state_root(state)
    assert root_with_rest(params, rest) == root
    assert len(rest) < 4096 + (1 << 20) + 32 * 4
    params[-1] += 1  # of the state too, as it holds the same array
    assert root_with_rest(params, rest) != root
    for wrong in (rest[:-1], rest + b"\0", b"", rest[:4096] + b"\0" * 9):
        if wrong != rest:
            with pytest.raises(DecodeError):
                root_with_rest(params, wrong)


# --- text and numbers -----------------------------------------------------------------------------


def test_a_text_follows_its_seed_and_ends_in_time(made: Made) -> None:
    found = loaded(made)

    def text(**keys: float) -> str:
        return generating.text(found, "def ", 40, Sampling(**keys))  # type: ignore[arg-type]

    assert text(seed=1) == text(seed=1)
    assert text(seed=1) != text(seed=2)
    assert text(temperature=0, seed=1) == text(temperature=0, seed=2)
    assert text(top_p=1e-9, seed=1) == text(temperature=0)
    assert len(list(generating.tokens(found, [0], 7, Sampling(seed=1)))) <= 7


def test_a_character_of_several_tokens_is_spelled_when_it_is_whole(made: Made) -> None:
    found = loaded(made)
    spelling = generating.Spelling(found)
    ids = [int(token) for token in found.tokenizer.encode([TEXT])[0]]
    pieces = [spelling.add(token) for token in ids]
    assert ("".join(pieces), spelling.end()) == (TEXT, "")
    assert "�" not in "".join(pieces)


def test_eval_measures_texts_of_ones_own(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 20)
    (tmp_path / "b.txt").write_text("x")
    names = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    assert cli.main(["model", "eval", *names, "--home", str(made.home), "--json"]) == 0
    texts = json.loads(capsys.readouterr().out)["texts"]
    ids = loaded(made).tokenizer.encode([TEXT * 20])[0]
    assert [(one["text"], one["tokens"]) for one in texts] == [("a.txt", len(ids)), ("b.txt", 1)]
    (tmp_path / "b.txt").write_bytes(b"\xff")
    assert cli.main(["model", "eval", *names, "--home", str(made.home)]) == 2
    assert "b.txt is not UTF-8 text" in capsys.readouterr().err


def test_the_held_out_text_is_measured_by_source_too(made: Made) -> None:
    found = loaded(made)
    sources = (*found.manifest.config.data.sources, TextSource(kind="text", path="books"))
    config = found.manifest.config.model_copy(
        update={"data": found.manifest.config.data.model_copy(update={"sources": sources})}
    )
    data = found.manifest.data.model_copy(update={"validation_by_source": (75_000, 25_000)})
    two = found.manifest.model_copy(update={"config": config, "data": data})
    [before] = evaluation.held_out(found, made.home / "blobs")
    whole, *parts = evaluation.held_out(
        dataclasses.replace(found, manifest=two), made.home / "blobs"
    )
    assert [one.text for one in parts] == ["Python's standard library", "books"]
    assert [one.tokens for one in parts] == [49 * 32, 15 * 32]
    assert whole.loss == pytest.approx(before.loss, rel=1e-6)
    assert whole.loss == pytest.approx((49 * parts[0].loss + 15 * parts[1].loss) / 64)


def test_the_held_out_text_is_needed_for_its_loss(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Path(shutil.copytree(made.home, tmp_path / "home"))
    (home / "blobs" / made.world.run.data.validation.index).unlink()
    assert cli.main(["model", "eval", "--home", str(home)]) == 4
    assert "held out" in capsys.readouterr().err
    assert cli.main(["model", "export", str(tmp_path / "out"), "--home", str(home)]) == 0
    assert "does not hold the text" in (tmp_path / "out" / "README.md").read_text()


def test_wrong_inputs_are_refused_before_anything_is_written(made: Made, tmp_path: Path) -> None:
    home = Path(shutil.copytree(made.home, tmp_path / "home"))
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").touch()
    assert cli.main(["model", "export", str(used), "--home", str(home)]) == 2
    (home / "blobs" / made.world.run.tokenizer.id).write_bytes(b"{}")
    with held(home) as found, pytest.raises(CheckFailed, match="not the tokenizer"):
        pretrained.load(found)
    with pytest.raises(UsageError, match="empty"):
        evaluation.of_file(loaded(made), used / "file")
    assert cli.main(["model", "export", str(tmp_path / "model"), "--home", str(home)]) == 1
    assert not (tmp_path / "model").exists()


def test_tasks_without_their_library_say_what_to_install(
    made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    line = ["model", "eval", "--home", str(made.home), "--tasks", "arc_easy"]
    assert cli.main(line) == 4
    assert "lm-eval" in capsys.readouterr().err

"""``artel run``: the file that it writes works, and what it says is right."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from artel import cli
from artel.coordinator import rehearsal
from artel.protocol.errors import EXIT_USAGE, UsageError
from artel.protocol.run_config import TextSource
from artel.protocol.run_file import load_config
from command_world import group
from text_world import RUN, write_run, write_texts

main = group("run")


def test_a_new_file_passes_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", str(tmp_path / "run")]) == 0
    assert "artel run check" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "run" / "RUN.toml")]) == 0
    text = capsys.readouterr().out
    assert "llama model of 922,752 parameters" in text
    assert "20,480 tokens per node and round" in text
    assert "worth a second look" not in text


@pytest.mark.parametrize(
    ("size", "least", "most"),
    [("tiny", 0.5e6, 2e6), ("small", 10e6, 30e6), ("100m", 90e6, 110e6)],
)
def test_every_size_passes_the_check(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    size: str,
    least: float,
    most: float,
) -> None:
    monkeypatch.setattr(rehearsal, "LARGEST", 2_000_000)
    path = str(write_texts(tmp_path / "My Tëxts", 300))
    folder = tmp_path / "runs" / "Größe_1 (neu)"
    assert main(["new", str(folder), "--data", path, "--size", size]) == 0
    capsys.readouterr()
    few = re.sub("max_nodes = .*", "max_nodes = 1", (folder / "RUN.toml").read_text())
    (folder / "RUN.toml").write_text(re.sub("inner_steps = .*", "inner_steps = 10", few))
    assert main(["check", str(folder / "RUN.toml"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["name"] == "groe-1-neu"
    assert least < facts["parameters"] < most
    assert facts["data_files"] == 300
    config = load_config(folder / "RUN.toml")
    assert config.data.sources == (TextSource(kind="text", path="../../My Tëxts"),)


@pytest.mark.slow  # a real training step of each in both precisions
@pytest.mark.parametrize("size", ["small", "100m"])
def test_every_size_can_be_trained(tmp_path: Path, size: str) -> None:
    assert main(["new", str(tmp_path), "--size", size]) == 0
    assert main(["check", str(tmp_path / "RUN.toml")]) == 0


def test_a_new_run_has_the_name_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["new", str(tmp_path / "one"), "--name", "mine"]) == 0
    assert load_config(tmp_path / "one" / "RUN.toml").run.name == "mine"
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "two")
    assert main(["new", "."]) == 0
    assert load_config(Path("RUN.toml")).run.name == "two"
    with pytest.raises(UsageError, match=r"\[run\] name"):
        main(["new", str(tmp_path / "three"), "--name", "No Name"])
    with pytest.raises(UsageError, match="nowhere"):
        main(["new", str(tmp_path / "three"), "--data", "nowhere"])
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    with pytest.raises(UsageError, match="cannot hold the path"):
        main(["new", str(tmp_path / "three"), "--data", str(odd)])
    assert not (tmp_path / "three").exists()


def test_new_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "RUN.toml").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        main(["new", str(tmp_path)])
    assert (tmp_path / "RUN.toml").read_text() == "mine"


@pytest.mark.parametrize("below", ["", "below", "below/further"])
def test_new_in_a_file_says_so_and_nothing_of_a_run_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UsageError) as caught:
        main(["new", str(tmp_path / "notes" / below)])
    assert "file" in caught.value.message
    assert "RUN.toml" not in caught.value.diagnostics()
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    "command",
    [["run", "check"], ["run", "prepare", "--home", "h"], ["coordinator", "start", "--home", "h"]],
)
def test_a_folder_in_place_of_its_run_file_is_told_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert cli.main([*command, str(tmp_path)]) == EXIT_USAGE
    assert str(tmp_path / "RUN.toml") in capsys.readouterr().err.splitlines()[1]
    assert cli.main([*command, str(tmp_path / "nowhere")]) == EXIT_USAGE
    assert "artel run new" in capsys.readouterr().err.splitlines()[1]
    assert not Path("h").exists()


def test_check_as_json_has_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(write_run(tmp_path)), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tokens_per_node_and_round"] == 3 * 2 * 16
    assert facts["tokens_in_all_max"] == 3 * 2 * 16 * 60 * 4
    assert facts["inner_steps_in_all"] == 180
    assert 4 < facts["bits_per_parameter"] < 5
    assert facts["down_bytes_max_nodes"] == 3 * facts["payload_bytes"]
    assert facts["state_bytes"] == 4096 + 2 * 4 * facts["parameters"]
    assert 0 < facts["train_tokens_estimate"] < 12 * 2000


@pytest.mark.parametrize(
    ("old", "new", "warning"),
    [
        ("[rounds]", "[exchange.outer]\nmomentum = 0.9\n[rounds]", "overshoots"),
        ("batch_size = 2", "batch_size = 2\nlr = 0.1", "high for AdamW"),
        ("warmup_steps = 1", "warmup_steps = 100", "more than a fifth"),
        ("inner_steps = 3", "quorum = 1\nmin_nodes = 2\ninner_steps = 3", "one slow node"),
        ("inner_steps = 3", "inner_steps = 25", "the data is read"),
        ("[rounds]", "[rounds]\nheartbeat_timeout_s = 3000", "noticed only after"),
        ("[rounds]", "[exchange]\nfragments = 12\n[rounds]", "exchanged only 5 times in 60"),
        (
            "[rounds]",
            '[exchange]\ncodec = "sparse"\nerror_feedback = 0.2\n[rounds]',
            "forgets most of what was not sent",
        ),
        ("hidden_size = 16", "hidden_size = 16\nattention_dropout = 0.1", "attention_dropout"),
    ],
)
def test_check_flags_what_is_seldom_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, warning: str
) -> None:
    path = write_run(tmp_path)
    path.write_text(path.read_text().replace(old, new, 1))
    assert main(["check", str(path)]) == 0
    text = capsys.readouterr().out
    assert warning in text.split("worth a second look:")[1]


def test_only_dropout_that_acts_is_flagged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPT-2 has a fourth one by default, which only its classifiers use."""
    path = write_run(tmp_path)
    head, rest = path.read_text().split("[model]")
    rest = rest[rest.index("[tokenizer]") :]
    kept = '[model]\ntype = "gpt2"\n[model.config]\nn_embd = 16\nn_layer = 1\nn_head = 2\n'
    off = "attn_pdrop = 0.0\nresid_pdrop = 0.0\n"
    for more, random in (("", {"attn_pdrop", "embd_pdrop", "resid_pdrop"}), (off, {"embd_pdrop"})):
        path.write_text(f"{head}{kept}{more}\n{rest}")
        assert main(["check", str(path), "--json"]) == 0
        warnings = " ".join(json.loads(capsys.readouterr().out)["warnings"])
        assert {word.strip(",") for word in warnings.split() if "drop" in word} == random
    path.write_text(f"{head}{kept}{off}embd_pdrop = 0.0\n\n{rest}")
    assert main(["check", str(path), "--json"]) == 0
    assert "drop" not in " ".join(json.loads(capsys.readouterr().out)["warnings"])


def test_check_and_prepare_warn_of_experts_that_nothing_balances(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path)
    head, rest = path.read_text().split("[model]")
    experts = (
        '[model]\ntype = "glm4_moe"\n[model.config]\nhidden_size = 16\nintermediate_size = 16\n'
        "num_hidden_layers = 2\nnum_attention_heads = 2\nnum_key_value_heads = 2\n"
        "n_routed_experts = 4\nmoe_intermediate_size = 8\nnum_experts_per_tok = 2\n"
    )
    path.write_text(f"{head}{experts}\n{rest[rest.index('[tokenizer]') :]}")
    assert main(["check", str(path)]) == 0
    assert "e_score_correction_bias" in capsys.readouterr().out.split("second look:")[1]
    assert main(["prepare", str(path), "--home", str(tmp_path / "home")]) == 0
    assert "e_score_correction_bias" in capsys.readouterr().err


def test_check_says_what_the_exchange_costs_and_how_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path)
    text = path.read_text().replace("inner_steps = 3", "inner_steps = 8\nbox_s = 60")
    settings = 'codec = "sparse"\noverlap_steps = 2\nfragments = 2\ntopology = "sharded"'
    text = text.replace("batch_size = 2", 'batch_size = 2\nkind = "muon"')
    path.write_text(f"{text}\n[exchange]\n{settings}\n")
    assert main(["check", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "2 of 8 steps (25% of the training) go on during the exchange",
        "it may take 13.5 s without anybody waiting",
        "each is exchanged every 16 steps",
        "from 2 to 32; nobody is waited for longer than 70 s",
        "with 4 nodes (sharded)",
        "plain steps of 1, falling to 0.65",
        "Muon trains",
        "a round closes after 70 s at the latest",
    ):
        assert words in shown, words
    assert main(["check", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert 0 < facts["muon_parameters"] < facts["parameters"]
    assert 0 < facts["typical_bytes"] <= facts["payload_bytes"]
    assert facts["exchange"]["codec"].startswith("sparse: the 128 largest")
    assert facts["memory_bytes"] > 0
    path.write_text(path.read_text().replace("fragments = 2", "fragments = 30"))
    with pytest.raises(UsageError, match="12 tensors"):
        main(["check", str(path)])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("inner_steps = 3", "inner_steps = 99", "takes 792"),
        ("validation_fraction = 0.2", "validation_fraction = 0.001", "the validation split has"),
        ('path = "texts"', 'path = "one.txt"', "cannot be split"),
    ],
)
def test_check_and_prepare_refuse_the_same_text(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = write_run(tmp_path)
    (tmp_path / "one.txt").write_text("one line " * 1000)
    (tmp_path / "texts" / "few.py").write_text("few = 1\n")
    path.write_text(path.read_text().replace(old, new))
    refused = list[str]()
    for command in (["check"], ["prepare", "--home", str(tmp_path / "home")]):
        with pytest.raises(UsageError, match=said) as error:
            main([*command, str(path)])
        refused.append(error.value.diagnostics())
    assert refused[0] == refused[1]


def test_large_numbers_are_written_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path / "texts", 300)
    path = write_run(tmp_path, RUN.replace("max_nodes = 4", "max_nodes = 1"))
    longer = "inner_steps = 3000\ndeadline_s = 86000"
    path.write_text(path.read_text().replace("inner_steps = 3", longer))
    assert main(["check", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "3,000 inner steps for everybody" in shown
    assert "a round closes after 86,000 s" in shown
    assert not re.search(r"\d{4}|e\+\d", shown)


def test_prepare_prints_the_run_and_then_finds_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prepare", str(write_run(tmp_path)), "--home", str(tmp_path / "home")]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert facts["fresh"] is True
    assert len(facts["run"]) == 64
    assert "training the tokenizer" in captured.err
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "already prepared" in text
    assert facts["run"] in text


def test_a_wrong_file_gives_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path)
    path.write_text(path.read_text().replace("inner_steps", "inner_step"))
    assert cli.main(["run", "check", str(path)]) == EXIT_USAGE
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"error: {path}: unknown key inner_step in [rounds]")
    assert "inner_steps" in lines[1]
    assert len(lines) == 2

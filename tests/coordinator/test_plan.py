"""``artel plan``: shapes, properties of what it computes, what it prints and refuses."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from artel import cli
from artel.coordinator.plan import PlanOptions, answering, training
from artel.protocol import needs
from artel.protocol.errors import EXIT_USAGE
from artel.protocol.manifest_template import SIZES
from artel.protocol.options import amount
from artel.protocol.run_file import load_config
from command_world import group

main = group("plan")
MILLION, BILLION = 10**6, 10**9


def test_amounts_as_people_write_them() -> None:
    parse = amount(10**5, 10**13)
    written = {"7B": 7 * BILLION, "1.5t": 1500 * BILLION, "922752": 922_752, "0.9M": 900_000}
    assert {text: parse(text) for text in written} == written
    for text in ("", "7 B", "-7B", "7BB", "nan", "1e9", "7", "11T", "٧B"):
        with pytest.raises(ValueError, match="as in 7B"):
            parse(text)


@pytest.mark.parametrize("size", [1e6, 17e6, 98e6, 500e6, 1.3e9, 7e9, 13e9, 32e9, 70e9, 405e9])
def test_a_shape_has_about_the_size_that_was_asked_for(size: float) -> None:
    shape = needs.llama_shape(int(size))
    assert shape.parameters == pytest.approx(size, rel=0.08 if size < 1e7 else 0.02)
    assert shape.active == shape.parameters
    assert shape.width % shape.heads == shape.heads % shape.kv_heads == 0


@pytest.mark.parametrize(
    ("size", "active"), [(46.7e9, 12.9e9), (304e9, 13e9), (671e9, 37e9), (50e6, 20e6)]
)
def test_experts_make_up_the_rest(size: float, active: float) -> None:
    shape = needs.llama_shape(int(size), int(active))
    assert shape.experts > needs.CHOSEN
    assert shape.parameters == pytest.approx(size, rel=0.05)
    assert shape.active == pytest.approx(active, rel=0.05)


@pytest.mark.parametrize("name", ["small", "100m"])
def test_our_own_sizes_are_found_again(name: str) -> None:
    shape = needs.llama_shape({"small": 17 * MILLION, "100m": 98 * MILLION}[name])
    ours = SIZES[name].model.config
    assert (shape.layers, shape.width) == (ours["num_hidden_layers"], ours["hidden_size"])


def test_more_of_it_takes_more_and_more_of_them_take_less() -> None:
    sizes = [training(size, PlanOptions(gpu="h200"))[1] for size in (10**7, 10**8, 10**9, 10**10)]
    for few, many in itertools.pairwise(sizes):
        assert many["machine_hours"] > few["machine_hours"]
        assert many["petaflop_days"] > few["petaflop_days"]
        for method in needs.METHODS:
            assert many["memory_bytes"][method] > few["memory_bytes"][method]
    crowds = [training(BILLION, PlanOptions(nodes=n, inner_steps=100, batch=16))[1] for n in
              (2, 8, 64, 512)]  # fmt: skip
    assert [facts["hours"] for facts in crowds] == sorted(
        (facts["hours"] for facts in crowds), reverse=True
    )
    busy = [
        training(BILLION, PlanOptions(up=up, down=5 * up, inner_steps=30, codec="int4", batch=64))[
            1
        ]
        for up in (1.0, 10.0, 100.0, 1000.0)
    ]
    assert [facts["computing"] for facts in busy] == sorted(facts["computing"] for facts in busy)
    assert 0 < busy[0]["computing"] < 0.2 < 0.9 < busy[-1]["computing"] <= 1
    precise = list(answering(7 * BILLION, PlanOptions())["precisions"].values())
    assert [row["weight_bytes"] for row in precise] == sorted(
        (row["weight_bytes"] for row in precise), reverse=True
    )
    assert [row["tokens_per_s"] for row in precise] == sorted(
        row["tokens_per_s"] for row in precise
    )


def test_a_slow_line_gets_a_smaller_and_rarer_exchange() -> None:
    fast, slow = (training(BILLION, PlanOptions(up=up, down=up))[1] for up in (10_000.0, 5.0))
    assert (fast["codec"], slow["codec"]) == ("int4", "sparse")
    assert slow["inner_steps"] > fast["inner_steps"]
    assert training(BILLION, PlanOptions(nodes=1))[1]["up_bytes"] >= 0


def test_text_for_the_run_file(tmp_path: Path) -> None:
    (tmp_path / "text.md").write_text("words")
    folder = tmp_path / "plan"
    assert main(["1M", "--write", str(folder), "--data", str(tmp_path / "text.md")]) == 0
    assert [source.kind for source in load_config(folder / "RUN.toml").data.sources] == ["text"]


def test_what_does_not_fit_is_said_for_one_sequence_at_once() -> None:
    """A step as large as the loss wants is thousands of gigabytes of what lies between layers."""
    large = training(7 * BILLION, PlanOptions(nodes=4))[1]
    assert (large["fits"], large["batch"], large["batch_at_once"]) == (False, 256, 1)
    assert 16 <= large["memory_bytes"]["mixed"] / (7 * BILLION) < 18
    small = training(100 * MILLION, PlanOptions())[1]
    assert small["fits"]
    assert small["batch_at_once"] == small["batch"] > 1


def test_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["175B", "--tokens", "300B", "--nodes", "128", "--gpu", "a100", "--gpus", "8"]) == 0
    text = capsys.readouterr().out
    assert "3,646 petaflop/s-days" in text
    assert "it does not fit: a machine has 640.0 GB" in text
    assert main(["7B", "--inference", "--gpu", "rtx4090", "--price", "0.5"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    fits = {words[0]: words[5] for words in lines if words[0] in needs.WEIGHT_BITS}
    assert fits == {"fp32": "no", "fp16": "yes", "int8": "yes", "int4": "yes"}


def test_money_and_electricity() -> None:
    facts = training(BILLION, PlanOptions(price=2.0, kwh_price=0.25))[1]
    assert facts["kwh"] == pytest.approx(facts["machine_hours"] * 0.45)
    assert facts["cost"] == pytest.approx(2 * facts["machine_hours"] + 0.25 * facts["kwh"])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["7"], "SIZE: '7' is not an amount"),
        (["7B", "--active", "8B"], "--active 8,000,000,000 is more"),
        (["7B", "--gpu", "abacus"], "no data sheet of 'abacus'"),
        (["7B", "--write", "my-plan"], "at most 4,294,967,296 parameters"),
        (["7B", "--utilisation", "2"], "--utilisation: '2' is not a number"),
    ],
)
def test_what_cannot_be_planned(
    capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert cli.main(["plan", *words]) == EXIT_USAGE
    error, hint = capsys.readouterr().err.splitlines()
    assert complaint in error
    assert hint.startswith("  → ")
    assert not Path("my-plan").exists()

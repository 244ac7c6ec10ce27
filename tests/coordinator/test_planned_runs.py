"""``artel plan`` by the rules of everybody else: shapes, bits and run files are what they seem."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from artel import cli
from artel.coordinator import rehearsal
from artel.protocol import model, needs, offer
from artel.protocol.errors import UsageError
from artel.protocol.exchange import codec
from artel.protocol.exchange.traffic import typical_share
from artel.protocol.run_file import load_config
from artel.protocol.state import Layout
from command_world import group

main = group("plan")
BILLION = 10**9


@pytest.mark.parametrize(("size", "active"), [(3e6, None), (7e9, None), (6e6, 3e6)])
def test_transformers_counts_the_same_parameters(size: float, active: float | None) -> None:
    shape = needs.llama_shape(int(size), active and int(active), vocab=1024)
    section = shape.section(context=128)
    if shape.parameters > 4 * BILLION:  # built without its blocks: one stands for all
        shape = replace(shape, layers=2)
        section.config["num_hidden_layers"] = 2
    assert model.layout_of(model.empty(section, shape.vocab)).parameters == shape.parameters


def test_bits_are_those_of_the_codecs() -> None:
    shape = needs.llama_shape(BILLION)
    layer = Layout.of([("a", (shape.width, shape.width)), ("b", (shape.width, shape.inner))])
    for name, bits in needs.BITS.items():
        chosen = codec.codec(name)
        sent = chosen.bits_per_parameter(layer) * typical_share(chosen, layer)
        assert bits == pytest.approx(sent, rel=0.02)


@pytest.mark.parametrize(
    "size", [["1M"], ["3M", "--codec", "sparse"], ["6M", "--active", "3M", "--context", "64"]]
)
def test_the_proposed_run_file_passes_the_check_with_the_same_numbers(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    size: list[str],
) -> None:
    monkeypatch.setattr(rehearsal, "LARGEST", 1)  # no training step
    options = [*size, "--nodes", "4", "--gpu", "cpu"]
    assert main([*options, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main([*options, "--write", str(tmp_path / "My plan")]) == 0
    file = tmp_path / "My plan" / "RUN.toml"
    assert f"artel run check '{file}'" in capsys.readouterr().out
    config = load_config(file)
    assert config.run.name == "my-plan"
    assert cli.main(["run", "check", str(file), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    actual = planned["shape"]["parameters"]
    assert checked["parameters"] == actual
    shape = needs.llama_shape(planned["parameters"], planned["active"])
    vectors = actual * offer.copies(config.exchange)
    memory = needs.trainer_bytes(config, vectors, shape.layers, shape.width)
    assert checked["memory_bytes"] == memory
    ratio = actual / planned["parameters"]
    assert checked["typical_bytes"] == pytest.approx(planned["contribution_bytes"] * ratio, rel=0.1)
    assert checked["inner_steps_in_all"] == planned["rounds"] * planned["inner_steps"]
    with pytest.raises(UsageError, match="already exists"):
        main([*options, "--write", str(tmp_path / "My plan")])

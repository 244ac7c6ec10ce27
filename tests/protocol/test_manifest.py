"""The run file's errors, and the manifest's one encoding and one signature."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import manifest_reference
from artel.protocol import canonical, dsse, manifest_template
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.manifest import (
    MAX_MANIFEST_BYTES,
    PAYLOAD_TYPE,
    Manifest,
    open_manifest,
    run_id,
    sign,
)
from artel.protocol.run_file import load_config, parse_config
from manifest_world import BASE, COORDINATOR, ORGANISER, config, manifest
from places import ROOT


@pytest.mark.parametrize(
    ("extra", "message", "hint"),
    [
        ("[rounds]\ninner_step = 4", "unknown key inner_step in [rounds]", "mean inner_steps?"),
        ("[optimizer]\ninner_steps = 4", "unknown key inner_steps in [optimizer]", "in [rounds]"),
        ("[round]\ntotal = 4", "unknown key round at the top level", "did you mean"),
        ("[exchange.outer]\nmomentun = 0.1", "in [exchange.outer]", "mean momentum?"),
        ("[rounds]\ninner_steps = -4", "inner_steps = -4 is out of bounds: at least 1", "steps"),
        ("[optimizer]\nlr = -0.1", "[optimizer] lr = -0.1 is out of bounds: above 0", "rate"),
        ('[rounds]\ninner_steps = "4"', 'inner_steps = "4" is not a whole number', "at most"),
        ("[rounds]\ninner_steps = 4.5", "inner_steps = 4.5 is not a whole number", "at most"),
        ("[rounds]\ntotal = true", "total = true is not a whole number", "Rounds"),
        ("[optimizer]\nlr = nan", "lr = NaN is not a finite number", "rate"),
        ("[exchange]\nouter = 3", "[exchange] outer = 3 is not a table", "optimiser"),
        ('[exchange]\ncodec = "int9"', 'codec = "int9" is none of "fp32"', "did you mean"),
        ("[rounds]\nmin_nodes = 4\nmax_nodes = 2", "min_nodes = 4 is above max_nodes = 2", "to 2"),
        ("[rounds]\ntotal = 2\ninner_steps = 2", "does not end within the run of 4 steps", "4"),
        ("[rounds]\ngrace_s = 9\ndeadline_s = 8", "grace_s = 9 is above deadline_s = 8", "lower"),
        ("[rounds]\nbox_s = 595", "box_s = 595 and grace_s = 10 together", "raise deadline_s"),
        ("seq_len = 512\n[optimizer]\nbatch_size = 65536", "33,554,432, at most", "lower"),
        (
            "[optimizer]\nbatch_size = 4096\n[rounds]\ninner_steps = 2000",
            "batch_size = 4096 × 2000 steps of a round is too much",
            "inner_steps",
        ),
        (
            "validation_windows = 65536\nseq_len = 4096",
            "validation_windows = 65536 × seq_len = 4096",
            "lower validation_windows",
        ),
        (
            "[exchange]\noverlap_steps = 11",
            "overlap_steps = 11 is more than half of [rounds] inner_steps = 20",
            "lower it to 10",
        ),
        (
            "[exchange]\nfragments = 5\n[rounds]\ntotal = 4",
            "fragments = 5 is more than [rounds] total = 4: some would never be",
            "lower it to 4",
        ),
        (
            '[exchange]\ncodec = "sparse"\n[exchange.outer]\nmomentum = 0.5',
            "momentum = 0.5 does not go with codec = 'sparse'",
            "momentum = 0, or leave it out",
        ),
        ('[optimizer]\nkind = "moun"', 'kind = "moun" is none of', "did you mean muon?"),
        ("[exchange]\ntop_k = 4", "top_k = 4 is out of bounds: at least 8", "4096"),
        ("[exchange]\ncontributor_floor = 0", "out of bounds: above 0", "everybody"),
        ("[rounds]\nmax_nodes = 1025", "max_nodes = 1025 is out of bounds", "members"),
        (f'[coordination]\nstandbys = ["{"ab" * 32}", "{"ab" * 32}"]', "twice", "each key once"),
        (
            '[coordination]\nstandbys = ["AB"]',
            '[coordination] standbys: "AB" is not 64 hex',
            "Keys",
        ),
        ("[coordination]\nhandover_s = 0", "handover_s = 0 is out of bounds", "silent"),
        ("[rounds]\ntotal = 2024-01-01", "2024-01-01 is a date", ""),
        ("[rounds", "is not valid TOML", "brackets"),
    ],
)
def test_a_wrong_setting_gives_one_line_with_file_key_value_and_fix(
    extra: str, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        config(extra)
    assert message in caught.value.message
    assert caught.value.message.startswith("RUN.toml")
    assert "\n" not in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ('"llama"', '"lama"', "type = 'lama' is no causal language model", "mean llama?"),
        ('"llama"', '"bert-x"', "type = 'bert-x' is no causal language model", "mean bert?"),
        ('kind = "bpe"', 'kind = "bytes"', "does not fit kind = 'bytes'", "remove vocab_size"),
        ("[data]", "[rounds]\nramp = 3\n[data]", "is for the beginning of spans", "set span"),
        ("vocab_size = 1024", "", "needs a vocab_size of at least 258", "1024"),
        ("vocab_size = 1024", "vocab_size = 9", "vocab_size = 9 is out of bounds", ""),
        ('"stdlib"', '"stdlb"', 'sources.1 kind = "stdlb" is none of', "mean stdlib?"),
        (', path = "texts"', "", "sources.2.path is missing", ".txt"),
        ('path = "texts"', 'pth = "texts"', "unknown key pth in [data.sources.2]", "mean path?"),
        ('kind = "stdlib"', "", "has no kind", "stdlib"),
        ('name = "tiny"', 'name = "My Run"', 'name = "My Run" is out of bounds', "lower-case"),
        ('name = "tiny"', "", "[run] name is missing", "lower-case"),
        ("= 256", "= 64", "seq_len = 128 is above [model.config] max_position_embeddings", "64"),
        ("hidden_size", "vocab_size", "vocab_size cannot be set", "remove"),
        ("hidden_size = 64", "x = [[[[[1]]]]]", "x is nested too deeply", ""),
        ("hidden_size = 64", "x = 99999999999999", "x = 99999999999999 is out of bounds", ""),
    ],
)
def test_a_wrong_table_is_explained(old: str, new: str, message: str, hint: str) -> None:
    assert old in BASE
    with pytest.raises(UsageError) as caught:
        parse_config(BASE.replace(old, new).encode(), "RUN.toml")
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_what_the_outer_optimiser_is_by_default_follows_from_the_codec() -> None:
    dense = config('[exchange]\ncodec = "int8"').exchange.outer
    assert (dense.lr, dense.momentum, dense.final_lr_fraction) == (0.7, 0.5, 1.0)
    sparse = config('[exchange]\ncodec = "sparse"').exchange.outer
    assert (sparse.lr, sparse.momentum, sparse.final_lr_fraction) == (1.0, 0.0, 0.65)
    own = config('[exchange]\ncodec = "sparse"\n[exchange.outer]\nlr = 0.5').exchange.outer
    assert (own.lr, own.momentum, own.final_lr_fraction) == (0.5, 0.0, 0.65)


def test_the_settings_of_the_exchange_survive_the_manifest() -> None:
    text = (
        '[exchange]\ncodec = "sparse"\ntop_k = 64\noverlap_steps = 10\nfragments = 3\n'
        'topology = "sharded"\naggregator = "centered_clip"\n[rounds]\nbox_s = 590.0\n'
        '[optimizer]\nkind = "muon"\nprecision = "bf16"\n'
    )
    original = manifest(config=config(text))
    assert Manifest.decode(original.encode()) == original
    exchange = original.config.exchange
    assert (exchange.top_k, exchange.overlap_steps, exchange.fragments) == (64, 10, 3)
    assert (exchange.topology, exchange.aggregator) == ("sharded", "centered_clip")
    assert original.config.rounds.box_s + original.config.rounds.grace_s == 600


def test_several_problems_are_counted() -> None:
    with pytest.raises(UsageError, match=r"\(and 1 more\)"):
        config("[rounds]\ntotal = 0\ninner_steps = 0")


def test_files_that_cannot_be_run_files(tmp_path: Path) -> None:
    path = tmp_path / "RUN.toml"
    with pytest.raises(UsageError, match="No such file"):
        load_config(path)
    path.write_bytes(b"#" * 100_000)
    with pytest.raises(UsageError, match="too large"):
        load_config(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_config(path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_as_a_run_file_raise_only_usage_errors(data: bytes) -> None:
    with pytest.raises(UsageError):
        parse_config(data, "RUN.toml")


def test_data_that_cannot_hold_a_span_is_refused() -> None:
    with pytest.raises(UsageError, match="too small") as caught:
        config("shard_tokens = 1024")
    assert "1025" in caught.value.hint


def test_the_template_is_the_example() -> None:
    text = manifest_template.template()
    assert parse_config(text.encode(), "RUN.toml") == manifest_template.EXAMPLE


def test_the_reference_is_up_to_date() -> None:
    path = ROOT / "docs" / "manifest.md"
    assert path.read_text(encoding="utf-8") == manifest_reference.reference(), (
        "run: python tests/worlds/manifest_reference.py > docs/manifest.md"
    )


def test_every_field_is_documented() -> None:
    pending: list[type] = [Manifest]
    seen: set[type] = set()
    while pending:
        model = pending.pop()
        seen.add(model)
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            assert field.description, f"{model.__name__}.{name}"
            kind = field.annotation
            if hasattr(kind, "model_fields") and kind not in seen:
                pending.append(kind)
    assert len(seen) > 10


def test_a_signed_manifest_round_trips() -> None:
    original = manifest()
    envelope = sign(original, ORGANISER).encode()
    opened, name = open_manifest(envelope)
    assert opened == original
    assert name == run_id(original.encode())
    assert len(envelope) <= dsse.MAX_ENVELOPE_BYTES


def test_the_run_id_does_not_change_between_versions() -> None:
    """Golden: a change here means that older manifests can no longer be read (or that a default is
    another one, which manifests write out)."""
    assert run_id(manifest().encode()) == (
        "66ab37eb710dedf33fa01e2e980403d05875dd9671eb333ed8eadf6b3b6e7414"
    )


def test_names_that_the_ledger_reads() -> None:
    raw = json.loads(manifest().encode())
    assert raw["config"]["rounds"]["inner_steps"] == 20
    assert raw["config"]["optimizer"]["batch_size"] == 8
    assert raw["config"]["data"]["seq_len"] == 128
    assert raw["coordinators"] == [COORDINATOR.key]
    assert raw["initial_state"] == "55" * 32
    assert raw["config"]["model"]["config"]["rms_norm_eps"] == 1


def test_the_coordinators_are_the_one_in_charge_and_the_standbys() -> None:
    standbys = ["ab" * 32, "cd" * 32]
    named = config(f"[coordination]\nstandbys = {json.dumps(standbys)}")
    both = manifest(config=named, coordinators=(COORDINATOR.key, *standbys))
    assert Manifest.decode(both.encode()).config.coordination.standbys == tuple(standbys)
    with pytest.raises(ValueError, match="are not the standbys"):
        manifest(config=named)
    with pytest.raises(ValueError, match="named as a standby, too"):
        manifest(config=named, coordinators=(standbys[0], *standbys))


def test_every_flipped_byte_of_the_envelope_is_refused() -> None:
    envelope = sign(manifest(), ORGANISER).encode()
    for position in range(0, len(envelope), 7):
        damaged = bytearray(envelope)
        damaged[position] ^= 1
        with pytest.raises((DecodeError, CheckFailed)):
            open_manifest(bytes(damaged))


def test_only_the_organiser_can_sign() -> None:
    with pytest.raises(CheckFailed, match="another organiser"):
        sign(manifest(), COORDINATOR)
    body = json.loads(manifest().encode())
    forged = dsse.sign(PAYLOAD_TYPE, body, COORDINATOR).encode()
    with pytest.raises(CheckFailed, match="its organiser"):
        open_manifest(forged)
    with pytest.raises(CheckFailed, match="nobody else"):
        open_manifest(dsse.sign(PAYLOAD_TYPE, body, COORDINATOR, ORGANISER).encode())
    with pytest.raises(CheckFailed, match="no signature"):
        open_manifest(dsse.Envelope(PAYLOAD_TYPE, manifest().encode(), ()).encode())
    with pytest.raises(DecodeError, match="not a manifest"):
        open_manifest(dsse.sign("text/plain", body, ORGANISER).encode())


def test_the_largest_manifest_fits_a_ledger_leaf_and_a_larger_one_is_refused() -> None:
    padded = manifest(config=config(**{"hidden_size = 64": f'x = ["{"y" * 250}"]'}))
    room = MAX_MANIFEST_BYTES - len(padded.encode())
    lists = ", ".join(f'"{"y" * 250}"' for _ in range(room // 253))
    large = manifest(config=config(**{"hidden_size = 64": f'x = ["{"y" * 250}", {lists}]'}))
    assert MAX_MANIFEST_BYTES - 260 < len(large.encode()) <= MAX_MANIFEST_BYTES
    assert len(sign(large, ORGANISER).encode()) <= dsse.MAX_ENVELOPE_BYTES
    too_large = manifest(config=config(**{"hidden_size = 64": f"x = [{lists}, {lists}]"}))
    with pytest.raises(DecodeError, match="at most 5600 fit"):
        too_large.encode()
    with pytest.raises(DecodeError, match="at most 5600"):
        Manifest.decode(b" " * (MAX_MANIFEST_BYTES + 1))


def test_a_manifest_has_one_encoding() -> None:
    raw = json.loads(manifest().encode())
    del raw["config"]["rounds"]["grace_s"]  # has a default, so it could be left out
    with pytest.raises(DecodeError, match="leaves fields out"):
        Manifest.decode(canonical.dumps(raw))
    raw = json.loads(manifest().encode())
    raw["extra"] = 1
    with pytest.raises(DecodeError, match="extra"):
        Manifest.decode(canonical.dumps(raw))
    with pytest.raises(DecodeError):
        Manifest.decode(manifest().encode().replace(b",", b", "))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("data", "train", "shards"), 3),
        (("data", "validation", "tokens"), 600_000),
        (("data", "dtype"), "uint32"),
        (("tokenizer", "id"), ""),
    ],
)
def test_facts_that_contradict_the_configuration_are_refused(
    path: tuple[str, ...], value: object
) -> None:
    raw = json.loads(manifest().encode())
    table = raw
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    with pytest.raises(DecodeError):
        Manifest.decode(canonical.dumps(raw))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_as_a_manifest_raise_only_decode_errors(data: bytes) -> None:
    with pytest.raises(DecodeError):
        Manifest.decode(data)


def test_importing_the_manifest_loads_no_heavy_library() -> None:
    code = (
        "import sys, artel.protocol.manifest, artel.protocol.assignment\n"
        "heavy = {'torch', 'transformers', 'hivemind', 'numpy', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

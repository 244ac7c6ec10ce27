"""The codec benchmark: its yardsticks are what they say, and its rows hold together."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from artel.protocol.state import Layout
from benchmark_world import rows_of, run
from benchmarks.codec_contenders import CHUNK, TorchHalf, TorchTopK

LAYOUT = Layout.of([("large", (3, CHUNK)), ("small", (50,)), ("odd", (CHUNK + 500,))])


def test_top_k_with_12_bits_sends_the_largest_at_their_places() -> None:
    vector = np.random.default_rng(1).standard_normal(LAYOUT.parameters).astype(np.float32)
    contender = TorchTopK(64, LAYOUT)
    payload = contender.encode(vector)
    decoded = contender.decode(payload, LAYOUT.parameters)
    chunks = [vector[i * CHUNK : (i + 1) * CHUNK] for i in range(3)]
    out = [decoded[i * CHUNK : (i + 1) * CHUNK] for i in range(3)]
    for chunk, sent in zip(chunks, out, strict=True):
        largest = np.sort(np.argsort(-np.abs(chunk))[:64])
        assert np.array_equal(np.flatnonzero(sent), largest)
    # Values are the means of their bins: no bias, and an error below one bin.
    large = decoded[: 3 * CHUNK]
    assert math.isclose(large.sum(), vector[: 3 * CHUNK][large != 0].sum(), abs_tol=1e-2)
    assert np.allclose(decoded[3 * CHUNK : 3 * CHUNK + 50], vector[3 * CHUNK :][:50], atol=2e-3)
    largest = np.sort(np.argsort(-np.abs(vector[-500:]))[:64])
    assert np.array_equal(np.flatnonzero(decoded[-500:]), largest)
    # 12 bits for a place, 2 for a value, a table for each tensor, 2 bytes for each dense element.
    assert contender.size(payload) == 5 * 64 * 14 // 8 + 2 * 16 + 2 * 50


def test_cast_is_a_cast() -> None:
    vector = np.random.default_rng(1).standard_normal(LAYOUT.parameters).astype(np.float32)
    payload = TorchHalf().encode(vector)
    assert TorchHalf().size(payload) == 2 * LAYOUT.parameters
    assert np.array_equal(
        TorchHalf().decode(payload, LAYOUT.parameters), vector.astype(np.float16).astype(np.float32)
    )


@pytest.mark.slow
def test_quick_codec_measures_every_codec(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done = run("codec", "--quick", "--json", str(file), timeout=580)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in rows_of(file)}
    assert json.loads(file.read_text())[0]["baseline_is"] == "limit"
    for name in ("fp32", "fp16", "int8", "int4", "sparse 64", "sparse 128"):
        for what in ("encode", "decode and add"):
            row = rows[f"{name}: {what}"]
            assert row["megabytes_per_second"] > 10
            assert math.isclose(row["ours"] * row["megabytes_per_second"], 1e3)
            assert row["baseline_is"].startswith("torch top" if "sparse" in name else "torch fp16")
    errors = [rows[f"{name}: encode"]["relative_error_first"] for name in ("fp16", "int8", "int4")]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.2
    sparse = rows["sparse 64: encode"]
    assert sparse["bits_per_parameter"] < 0.75 * sparse["baseline_bits_per_parameter"]
    # As good as two bits can be, with a third fewer bits for the places.
    assert sparse["relative_error_first"] < 1.01 * sparse["baseline_relative_error_first"]
    for name in ("int4", "sparse 64"):
        row = rows[f"{name}: centered_clip of 8"]
        assert row["baseline_is"] == "mean"
        assert 1 < row["ratio"] <= row["ratios"][1], "it does what the mean does, and more"

"""Two attackers among eight: the aggregate stays near the honest mean, dense and sparse.

The honest contributions are one signal and noise of 1.4 times its norm, as measured between workers
after 20 inner steps (pairwise cosine 0.34). Attacks: a flipped sign, also times 1000; inner-product
manipulation (IPM, Xie et al. 2019: a negative multiple of the honest mean); "a little is enough"
(ALIE, Baruch et al. 2019: the mean minus z standard deviations); one constant direction.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from aggregate_world import largest
from artel.protocol.exchange.aggregation import Method, Weighted, aggregate, centered_clip
from artel.protocol.exchange.codec import Elements
from artel.protocol.state import Layout, Vector

LAYOUT = Layout.of([("up", (120, 80)), ("down", (80, 120)), ("norm", (80,))])
PEERS, BAD = 8, 2
Vectors = npt.NDArray[np.float64]  # (peers, N)
Attack = Callable[[Vectors, Vectors], Vectors]
"""From the honest contributions, and those that the attackers would have made, to theirs."""

ATTACKS: dict[str, Attack] = {
    "sign": lambda honest, own: -own,
    "sign x1000": lambda honest, own: -1000 * own,
    "ipm 0.5": lambda honest, own: -0.5 * honest.mean(0) + 0 * own,
    "ipm 2": lambda honest, own: -2 * honest.mean(0) + 0 * own,
    "alie 1": lambda honest, own: honest.mean(0) - honest.std(0) + 0 * own,
    "alie 1.5": lambda honest, own: honest.mean(0) - 1.5 * honest.std(0) + 0 * own,
    "constant": lambda honest, own: 100 + 0 * own,
    "zeros": lambda honest, own: 0 * own,
}


def peers(seed: int) -> Vectors:
    rng = np.random.default_rng(seed)

    def heavy(*shape: int) -> Vectors:  # elements as uneven as those of pseudo-gradients
        drawn: Vectors = rng.standard_normal(shape) * rng.standard_normal(shape) ** 2
        return drawn

    signal = heavy(LAYOUT.parameters)
    noise = heavy(PEERS, LAYOUT.parameters)
    return 1e-3 * (signal + 1.4 * noise)


def combined(vectors: Vectors, method: Method, sparse: bool) -> Vector:
    def send(vector: Vectors) -> Vector | Elements:
        rounded = vector.astype(np.float32)
        return largest(rounded) if sparse else rounded

    given = [Weighted(f"peer-{i}", 512, send(v)) for i, v in enumerate(vectors)]
    return aggregate(LAYOUT, given, method=method, floor=0.25)


def outcome(attack: str, method: Method, sparse: bool, seed: int) -> tuple[float, float]:
    """Distance from the aggregate of the honest alone, relative to it; and how much of the honest
    mean is in the aggregate, relative to how much is in theirs."""
    all_peers = peers(seed)
    honest, own = all_peers[:-BAD], all_peers[-BAD:]
    clean = combined(honest, method, sparse).astype(np.float64)
    attacked = combined(np.concatenate([honest, ATTACKS[attack](honest, own)]), method, sparse)
    mean = honest.mean(0)
    progress = float(attacked @ mean) / float(clean @ mean)
    return float(np.linalg.norm(attacked - clean) / np.linalg.norm(clean)), progress


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("method", ["mean", "centered_clip"])
def test_dense_aggregate_stays_near_the_honest_mean(attack: str, method: Method, seed: int) -> None:
    distance, progress = outcome(attack, method, False, seed)
    assert distance < (0.70 if method == "mean" else 0.45)
    assert progress > (0.35 if method == "mean" else 0.55)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("method", ["mean", "centered_clip"])
def test_sparse_aggregate_stays_near_the_honest_mean(
    attack: str, method: Method, seed: int
) -> None:
    distance, progress = outcome(attack, method, True, seed)
    assert distance < 0.75
    assert progress > 0.30


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("attack", ["sign", "sign x1000", "ipm 2"])
def test_centered_clip_resists_better_than_the_norm_clip_alone(attack: str, sparse: bool) -> None:
    plain, clipped = (outcome(attack, m, sparse, 2) for m in ("mean", "centered_clip"))
    assert clipped[0] < plain[0]
    assert clipped[1] > plain[1]


def test_without_attackers_centered_clip_is_nearly_the_mean() -> None:
    plain, clipped = (combined(peers(3), m, False) for m in ("mean", "centered_clip"))
    assert np.linalg.norm(clipped - plain) < 0.05 * np.linalg.norm(plain)


def directly(vectors: Vectors, shares: list[float]) -> Vectors:
    """The centered clip as published, on the vectors themselves."""
    center: Vectors = np.average(vectors, axis=0, weights=shares)
    for _ in range(3):
        distances = np.linalg.norm(vectors - center, axis=1)
        pull = np.minimum(1, np.median(distances) / distances) * shares
        center = center + pull @ (vectors - center)
    return center


def test_coefficients_are_those_of_the_published_rule() -> None:
    for seed in range(5):
        vectors = np.concatenate([peers(seed)[:5], -3 * peers(seed)[:2]])
        shares = (np.array([1, 2, 1, 4, 1, 1, 2]) / 12).tolist()
        coefficients = centered_clip(vectors @ vectors.T, shares)
        assert min(coefficients) >= 0
        assert abs(sum(coefficients) - 1) < 1e-12
        expected = directly(vectors, shares)
        assert np.linalg.norm(coefficients @ vectors - expected) < 1e-9 * np.linalg.norm(expected)


def test_equal_contributions_keep_their_shares() -> None:
    gram = np.full((3, 3), 7.3)
    assert centered_clip(gram, [0.5, 0.25, 0.25]) == pytest.approx([0.5, 0.25, 0.25])
    assert centered_clip(np.zeros((2, 2)), [0.5, 0.5]) == [0.5, 0.5]
    assert centered_clip(np.array([[4.0]]), [1.0]) == [1.0]


def test_the_dot_products_do_not_depend_on_what_fits_into_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors = peers(4)
    for sparse in (False, True):
        expected = combined(vectors, "centered_clip", sparse)
        for held in (1, 3):
            monkeypatch.setattr(
                "artel.protocol.exchange.aggregation.HELD_BYTES", held * 4 * LAYOUT.parameters
            )
            assert combined(vectors, "centered_clip", sparse).tobytes() == expected.tobytes()

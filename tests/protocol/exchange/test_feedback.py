"""Error feedback: nothing is lost, what did not count comes back, and a round can be taken back."""

from __future__ import annotations

import numpy as np
import pytest

from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.exchange.codec import codec
from artel.protocol.exchange.feedback import CAP, REMEMBERED, Feedback
from artel.protocol.exchange.parts import Part, cut, fragment, whole
from artel.protocol.state import Layout, Vector
from codec_world import vector_of

LAYOUT = Layout.of([("a", (3, 4096)), ("b", (100,)), ("c", (5, 1024)), ("d", (9000,))])
SPARSE = codec("sparse", 64)
WHOLE = whole(LAYOUT)


def delta(seed: int, scale: float = 1e-3) -> Vector:
    random = np.random.default_rng(seed)
    return (random.standard_normal(LAYOUT.parameters) * scale).astype(np.float32)


def feedback(decay: float = 0.95) -> Feedback:
    return Feedback(SPARSE, LAYOUT, decay=decay)


def test_sent_and_kept_add_up_to_what_came_in() -> None:
    memory, before = feedback(), np.zeros(LAYOUT.parameters, np.float32)
    for round in range(12):
        came = before * np.float32(0.95) + delta(round)
        (payload,) = memory.encode([WHOLE], [delta(round)])
        entries = SPARSE.decode(LAYOUT, payload)
        assert payload == SPARSE.encode(LAYOUT, came)
        unsent = np.ones(LAYOUT.parameters, bool)
        unsent[entries.positions] = False
        assert np.array_equal(memory.residual[unsent], came[unsent])  # exactly
        total = memory.residual[~unsent].astype(np.float64) + entries.values
        kept = np.abs(memory.residual[~unsent].astype(np.float64))
        assert (np.abs(total - came[~unsent]) <= kept * 2.0**-24).all()  # but for one rounding
        before = memory.residual.copy()


def test_everything_is_sent_in_the_end() -> None:
    """With a decay of 1 the payloads add up to the pseudo-gradients but for the residual."""
    chosen = codec("sparse", 1024)
    memory = Feedback(chosen, LAYOUT, decay=1.0)
    came, sent = np.zeros(LAYOUT.parameters), np.zeros(LAYOUT.parameters)
    for round in range(60):
        came += delta(round % 3)
        (payload,) = memory.encode([WHOLE], [delta(round % 3)])
        sent += vector_of(chosen, LAYOUT, payload)
    assert np.allclose(sent + memory.residual, came, atol=1e-7)
    assert np.linalg.norm(memory.residual) < 0.2 * np.linalg.norm(came)


def test_slices_and_fragments_keep_to_themselves() -> None:
    memory = feedback()
    first, second = fragment(LAYOUT, 2, 0), fragment(LAYOUT, 2, 1)
    memory.encode([first], [first.take(delta(1))])
    kept = memory.residual.copy()
    assert first.take(kept).any()
    assert not second.take(kept).any()
    slices = cut(second, 3)
    assert len(slices) > 1
    payloads = memory.encode(slices, [part.take(delta(2)) for part in slices])
    assert np.array_equal(first.take(memory.residual), first.take(kept))
    for part, payload in zip(slices, payloads, strict=True):
        came = part.take(delta(2))
        assert payload == SPARSE.encode(part.layout, came)
        decoded = vector_of(SPARSE, part.layout, payload)
        assert np.array_equal(part.take(memory.residual), came - decoded)


def test_undo_takes_a_round_back_to_the_bit() -> None:
    memory, twin = feedback(), feedback()
    for round in range(3):
        assert memory.encode([WHOLE], [delta(round)]) == twin.encode([WHOLE], [delta(round)])
    kept = memory.residual.copy()
    payloads = memory.encode([WHOLE], [delta(7, 5.0)])
    memory.left_out([WHOLE], payloads)
    memory.undo()
    assert np.array_equal(memory.residual, kept)
    assert memory.encode([WHOLE], [delta(8)]) == twin.encode([WHOLE], [delta(8)])
    assert np.array_equal(memory.residual, twin.residual)
    # The norms are taken back as well: a large pseudo-gradient that never was sets no limit.
    for round in range(REMEMBERED):
        memory.encode([WHOLE], [delta(round, 100.0)])
        memory.undo()
    memory.left_out([WHOLE], payloads)
    twin.left_out([WHOLE], payloads)
    assert np.array_equal(memory.residual, twin.residual)


def test_undo_of_nothing_changes_nothing() -> None:
    memory = feedback()
    memory.undo()
    memory.encode([WHOLE], [delta(1)])
    memory.undo()
    memory.undo()
    assert not memory.residual.any()


def test_what_was_left_out_counts_again() -> None:
    memory = feedback()
    payloads = memory.encode([WHOLE], [delta(1)])
    memory.left_out([WHOLE], payloads)
    assert np.allclose(memory.residual, delta(1), rtol=1e-6, atol=1e-9)
    # The next payload is the one of both rounds together.
    (payload,) = memory.encode([WHOLE], [np.zeros(LAYOUT.parameters, np.float32)])
    expected = vector_of(SPARSE, LAYOUT, payloads[0]) * 0.95
    assert np.allclose(vector_of(SPARSE, LAYOUT, payload), expected, rtol=0.01, atol=5e-5)


def test_what_an_aggregate_dropped_is_put_back() -> None:
    memory = feedback()
    slices = cut(WHOLE, 3)
    payloads = memory.encode(slices, [part.take(delta(1)) for part in slices])
    before = memory.residual.copy()
    sent = SPARSE.decode(slices[1].layout, payloads[1])
    kept = np.union1d(sent.positions[::2], [2, 3])
    memory.put_back(slices[1], payloads[1], kept)
    for number in (0, 2):
        assert np.array_equal(slices[number].take(memory.residual), slices[number].take(before))
    expected = slices[1].take(before).copy()
    lost = ~np.isin(sent.positions, kept)
    assert lost.any()
    expected[sent.positions[lost]] += sent.values[lost]
    assert np.array_equal(slices[1].take(memory.residual), expected)


def test_what_was_sent_instead_is_taken_off_in_the_place_of_the_own() -> None:
    memory, other = feedback(), feedback()
    slices = cut(WHOLE, 3)
    payloads = memory.encode(slices, [part.take(delta(1)) for part in slices])
    kept = memory.residual.copy()
    memory.sent_instead(slices, payloads, payloads)
    assert np.array_equal(memory.residual, kept), "the same bytes change nothing"
    theirs = other.encode(slices, [part.take(delta(2)) for part in slices])
    memory.sent_instead(slices, payloads, theirs)
    for part, payload in zip(slices, theirs, strict=True):
        expected = part.take(delta(1)) - vector_of(SPARSE, part.layout, payload)
        assert np.allclose(part.take(memory.residual), expected, rtol=1e-6, atol=1e-9)
    memory.undo()
    assert memory.residual.any()


def rms(vector: Vector) -> float:
    return float(np.sqrt(np.mean(vector.astype(np.float64) ** 2)))


def test_residual_is_capped() -> None:
    memory = feedback(decay=1.0)
    typical = rms(delta(0))
    for _ in range(40):  # the same direction again and again, and never does it count
        memory.left_out([WHOLE], memory.encode([WHOLE], [delta(0)]))
        assert rms(memory.residual) <= CAP * typical * 1.000001
    assert rms(memory.residual) > 0.99 * CAP * typical


def test_cap_follows_the_median_of_the_last_pseudo_gradients() -> None:
    memory = feedback(decay=1.0)
    for round in range(REMEMBERED):
        memory.encode([WHOLE], [delta(round)])
    memory.encode([WHOLE], [delta(99, 1.0)])  # one of a thousand times the size: cut to ten times
    assert rms(memory.residual) == pytest.approx(CAP * 1e-3, rel=0.1)


def test_reset_forgets() -> None:
    memory = feedback()
    memory.encode([WHOLE], [delta(1, 1000.0)])
    memory.reset()
    assert not memory.residual.any()
    memory.undo()
    assert not memory.residual.any()
    fresh = feedback()
    for round in range(2):
        assert memory.encode([WHOLE], [delta(round)]) == fresh.encode([WHOLE], [delta(round)])
    memory.left_out([WHOLE], [SPARSE.encode(LAYOUT, delta(3, 1.0))])
    fresh.left_out([WHOLE], [SPARSE.encode(LAYOUT, delta(3, 1.0))])
    assert np.array_equal(memory.residual, fresh.residual)


def test_failed_encode_changes_nothing() -> None:
    memory = feedback()
    memory.encode([WHOLE], [delta(1)])
    kept = memory.residual.copy()
    slices = cut(WHOLE, 2)
    deltas = [part.take(delta(2)).copy() for part in slices]
    deltas[1][0] = np.nan
    with pytest.raises(CheckFailed, match="NaN"):
        memory.encode(slices, deltas)
    with pytest.raises(CheckFailed):
        memory.encode([slices[0]], [deltas[1]])
    with pytest.raises(ValueError, match="zip"):
        memory.encode(slices, deltas[:1])
    assert np.array_equal(memory.residual, kept)
    memory.undo()  # still the first one
    assert not memory.residual.any()


def test_inputs_are_left_alone() -> None:
    memory, given = feedback(), delta(1)
    given.flags.writeable = False
    memory.encode([WHOLE], [given])
    with pytest.raises(ValueError):
        memory.residual[0] = 1


def test_wrong_payloads_are_refused() -> None:
    memory = feedback()
    payloads = memory.encode([WHOLE], [delta(1)])
    with pytest.raises(DecodeError):
        memory.left_out([WHOLE], [payloads[0][:-1]])
    with pytest.raises(DecodeError):
        memory.put_back(WHOLE, b"", np.zeros(0, np.int64))


def test_only_sensible_decays() -> None:
    for decay in (-0.1, 1.1, float("nan")):
        with pytest.raises(CheckFailed, match="decay"):
            Feedback(SPARSE, LAYOUT, decay=decay)


def test_parts_of_another_model_are_refused() -> None:
    other = Part(Layout.of([("x", (5,))]), (slice(10**6, 10**6 + 5),))
    with pytest.raises(CheckFailed):
        feedback().encode([other], [np.zeros(5, np.float32)])

"""Who gets a seat, and that the ledger's rule lets exactly such rounds be opened."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from artel.protocol import rounds
from artel.protocol.round_state import Phase, Presence, Ranked, RoundRules, RunState, Tick
from artel.protocol.seats import Seat, few_newcomers, quota, seated, share, shared_out

RULES = RoundRules(10, 1, 8, 0.66, 30, 5, 10, 10, 15)


def table(known: int, *newcomers: int) -> dict[str, Seat]:
    """Nodes k0, k1, ... with standing, and so many of each account without."""
    seats = {f"k{i}": Seat(f"K{i}", 100, i, 100 * known) for i in range(known)}
    for account, nodes in enumerate(newcomers):
        for i in range(nodes):
            seats[f"n{account}.{i}"] = Seat(f"N{account}", 0, len(seats))
    return seats


def standings(seats: dict[str, Seat]) -> dict[str, int]:
    """Account to its standing; only those that have any."""
    return {seat.account: seat.standing for seat in seats.values() if seat.standing}


def members(seats: dict[str, Seat], rules: RoundRules = RULES, on_members: bool = True) -> set[str]:
    peers = {peer: Presence(0.0, "r3") for peer in seats}
    state = RunState(Phase.WAITING, 3, 0, "r3", 0.0, peers=peers, unranked=True)
    assert rounds.step(rules, state, Tick(0.0)) == (state, []), "not before seats are known"
    state, actions = rounds.step(rules, state, Ranked(0.0, seats, on_members))
    assert len(actions) <= 1
    return set(state.members)


@given(
    known=st.integers(0, 30),
    newcomers=st.lists(st.integers(1, 4), max_size=20),
    most=st.integers(1, 20),
    least=st.integers(1, 20),
)
def test_a_quarter_of_newcomers_at_most_each_of_another_account(
    known: int, newcomers: list[int], most: int, least: int
) -> None:
    seats = table(known, *newcomers)
    rules = replace(RULES, min_nodes=min(least, most), max_nodes=most)
    sitting = members(seats, rules)
    if len(seats) < rules.min_nodes:
        assert not sitting
        return
    assert rules.min_nodes <= len(sitting) <= most
    new = [seats[peer].account for peer in sitting if not seats[peer].standing]
    few = few_newcomers([seats[peer].account for peer in sitting], standings(seats))
    assert few or len(sitting) <= rules.min_nodes
    # Nobody's seat is left empty, and newcomers keep those with standing out of a quarter at most:
    # of fewer than four seats, in one round of four.
    quarter = (most + 3) // 4
    assert len(sitting) - len(new) >= min(known, most - quarter)
    wanted = min(len(newcomers), quota(len(sitting) - len(new)), quarter)
    assert len(new) >= min(wanted, most - (len(sitting) - len(new)))


def test_fresh_keys_do_not_take_the_seats_of_those_who_have_worked() -> None:
    seats = {peer: replace(seat, place=-seat.place) for peer, seat in table(2, *[1] * 40).items()}
    assert members(seats) == {"k0", "k1", "n39.0"}
    # As long as the run rests on its coordinator all seats are given away.
    sitting = members(seats, on_members=False)
    assert len(sitting) == RULES.max_nodes
    assert {"k0", "k1"} <= sitting


@given(
    known=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 9)), min_size=1, max_size=12),
    away=st.integers(0, 1000),
    newcomers=st.lists(st.integers(1, 4), max_size=6),
    most=st.integers(1, 32),
)
def test_no_account_has_a_larger_part_of_the_seats_than_of_all_standing(
    known: list[tuple[int, int]], away: int, newcomers: list[int], most: int
) -> None:
    """Where so much standing is of accounts without a node here."""
    whole = away + sum(standing for standing, _ in known)
    seats = {
        f"k{i}.{node}": Seat(f"K{i}", standing, 9 * i + node, whole)
        for i, (standing, nodes) in enumerate(known)
        for node in range(nodes)
    } | table(0, *newcomers)
    rules = replace(RULES, max_nodes=most)
    sitting = members(seats, rules)
    accounts = [seats[peer].account for peer in sitting]
    points = standings(seats) | ({"away": away} if away else {})
    assert len(sitting) == 1 or (few_newcomers(accounts, points) and shared_out(accounts, points))
    # And no seat is left empty that it might have.
    for i, (standing, nodes) in enumerate(known):
        if len(sitting) < most - most // 4:
            assert accounts.count(f"K{i}") == min(nodes, share(standing, whole, len(sitting)))


def test_thirty_nodes_of_a_small_account_have_one_seat() -> None:
    """It has 2 % of all standing; they could break the quorum of each round by silence."""
    rules = replace(RULES, max_nodes=32)
    seats = {f"k{i}": Seat(f"K{i}", 98, i + 30, 1000) for i in range(10)}
    seats |= {f"e{i}": Seat("E", 20, i, 1000) for i in range(30)}
    assert members(seats, rules) == {*(f"k{i}" for i in range(10)), "e0"}
    seats = {
        peer: replace(seat, standing=seat.standing * (10 if seat.account == "E" else 1))
        for peer, seat in seats.items()
    }
    sitting = members({peer: replace(seat, whole=1180) for peer, seat in seats.items()}, rules)
    assert len([peer for peer in sitting if peer[0] == "e"]) == 3  # of 13, with 17 % of standing


def test_the_lot_decides_and_not_the_name() -> None:
    seats = table(20)
    assert members(seats) == {f"k{i}" for i in range(8)}
    turned = {peer: replace(seat, place=19 - seat.place) for peer, seat in seats.items()}
    assert members(turned) == {f"k{i}" for i in range(12, 20)}


def test_a_run_whose_known_nodes_are_gone_goes_on_with_whom_it_needs() -> None:
    assert len(members(table(0, 4), replace(RULES, min_nodes=3))) == 3
    assert not few_newcomers(["N0", "N0"], {})
    assert few_newcomers(["N0"], {})
    assert seated([], {}, 4, {}, 1, 4) == []

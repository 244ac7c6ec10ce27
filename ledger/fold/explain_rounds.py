"""What an entry of a round did, in words with the arithmetic; for :mod:`ledger.fold.explain`."""

from __future__ import annotations

from collections.abc import Iterator

from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.fold.facts import (
    Fact,
    assigned,
    belonged,
    counted,
    earning,
    events_of,
    fate,
    judged,
    outcome_of,
    steps_of,
    totals,
    vesting,
)
from artel.ledger.fold.text import plural, short_key, short_peer
from artel.ledger.fold.trail import Story
from artel.protocol.assignment import GATHER_MEMBERS


def attempt(
    story: Story, body: entries.RoundOpened | entries.RoundCommitted | entries.RoundClosed
) -> Iterator[Fact]:
    """Facts of an entry by which a coordinator takes an attempt further."""
    trail = story.attempt
    assert trail is not None
    match body:
        case entries.RoundOpened():
            yield Fact(assigned(story.genesis))
            for peer, account in sorted(trail.accounts.items()):
                yield Fact(belonged(peer, account, trail), (trail.bound[peer],))
                yield Fact(steps_of(story.genesis, trail, peer))
        case entries.RoundCommitted():
            for peer in sorted(trail.accounts):
                did = "committed" if peer in body.commitments else "did not commit in time"
                yield Fact(f"node {short_peer(peer)} {did}")
        case entries.RoundClosed():
            for item in body.accepted:
                work = trail.contributed[item.node]
                yield Fact(
                    f"node {short_peer(item.node)}: accepted with {item.weight:,} tokens, "
                    f"shown by entry {work}",
                    (work,),
                )
            for left in body.rejected:
                why = f"{reasons.explain(left.reason)} ({left.reason})"
                yield Fact(f"node {short_peer(left.node)}: left out, {why}")
    yield from outcome_of(trail)


def contribution(story: Story, body: entries.Contribution) -> Iterator[Fact]:
    """Facts of what was assigned, what was made of it, and what it earned."""
    trail = story.attempt
    assert trail is not None
    steps = steps_of(story.genesis, trail, body.node)
    yield Fact(f"{steps} (entry {trail.opened})", (trail.opened,))
    yield Fact(counted(story.genesis, trail, body))
    yield Fact(
        f"the node says that it sent {plural(body.up, 'byte')} and received "
        f"{plural(body.down, 'byte')} since its contribution before; nothing is paid for that"
    )
    opened, committed = trail.opened, trail.committed
    account = trail.accounts[body.node]
    yield Fact(
        f"round {body.round} was opened by entry {opened}; the node had committed to exactly this "
        f"by entry {committed}",
        (opened, committed),
    )
    earned = story.trails.get(story.entry.id)
    if earned is None:
        if body.node in trail.left_out:
            reason = trail.left_out[body.node]
            why = f"{reasons.explain(reason)} ({reason})"
            yield Fact(f"left out by entry {trail.closed}: {why}", (trail.closed,))
        yield from outcome_of(trail)
        if trail.agreed >= 0 and story.state.accounts[account].barred:
            yield Fact(f"account {short_key(account)} is barred and earns nothing")
        for number in trail.wrong:
            if trail.slices[number][1].node == body.node:
                yield from judged(trail, number)
        return
    yield Fact(
        f"accepted by entry {trail.closed}, agreed by entry {trail.agreed} with {trail.agreeing} "
        f"of {plural(trail.accepted, 'contributor')}",
        (trail.closed, trail.agreed),
    )
    yield earning(earned)
    yield from events_of(earned)
    yield fate(story, earned)


def slice(story: Story, body: entries.Aggregate | entries.SliceWrong) -> Iterator[Fact]:
    """Facts of a slice: whose it is, what was recorded, and what came of it."""
    trail, work = story.attempt, story.genesis.rules.work
    assert trail is not None
    members = len(trail.accounts)
    yield Fact(
        f"the round is sharded: {plural(members, 'member')} (exchange.topology = {work.topology}"
        + (f", sharded above {GATHER_MEMBERS})" if work.topology == "auto" else ")")
    )
    _, recorded = trail.slices[body.slice]
    rank = (body.slice + trail.round) % trail.accepted
    yield Fact(
        f"slice {body.slice} is for number {rank} = ({body.slice} + round {trail.round}) mod "
        f"{trail.accepted} of the members that entry {trail.closed} accepted, from 0 and "
        f"ascending: node {short_peer(recorded.node)}",
        (trail.closed,),
    )
    yield from judged(trail, body.slice)
    yield from outcome_of(trail)


def agreed(story: Story, body: entries.StateAgreed) -> Iterator[Fact]:
    """Facts of who agreed, which slices were wrong, and what was granted."""
    trail = story.attempt
    assert trail is not None
    yield Fact(
        f"signed by a coordinator and {trail.agreeing} of the {trail.accepted} contributors that "
        f"entry {trail.closed} accepted in round {trail.round}; more than half are needed",
        (trail.closed,),
    )
    for number in sorted({*trail.wrong, *trail.accused}):
        yield from judged(trail, number)
    yield Fact(assigned(story.genesis))
    yield Fact(vesting(story.genesis.rules.ownership.vesting_rounds))
    yield from totals(story)


def run_closed(story: Story, body: entries.RunClosed) -> Iterator[Fact]:
    """Facts of the end of the run."""
    yield Fact(f"all {plural(body.round, 'round')} are over (rounds.total)")
    yield Fact(
        "everything that was pending vests, whatever is disputed included"
        if body.closing == 2
        else "everything that was pending and not disputed vests"
    )
    yield from totals(story)

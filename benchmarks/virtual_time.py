"""A run in virtual time: what its rounds would look like with so many nodes, on such links.

The rounds are those of :mod:`protocol.rounds`, fed with events at computed times; nothing here
decides what a coordinator decides. What is modelled is how long things take: an inner step, the
codec, and the bytes of each phase over the slowest link that they cross. Bytes are counted from
what nodes really send (headers of blobs and entries of the ledger included); a phase takes its
bytes over the rate, uplink and downlink at the same time, plus the latency of its requests.

What is left out: congestion between strangers, lost packets, uneven shares of one link.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from artel.protocol import duties, round_state, rounds
from artel.protocol.assignment import Work
from artel.protocol.errors import CheckFailed
from artel.protocol.exchange.pseudogradient import HEADER_BYTES, index_bytes
from artel.protocol.identity import peer_id_of
from artel.protocol.index_items import items_bytes
from artel.protocol.round_state import Phase, Presence, RunState

ENTRY_BYTES = 1100
"""A signed entry of the ledger about one node, as it crosses the wire."""
MESSAGE_BYTES = 900
"""A heartbeat or another control message, with its reply."""
MESSAGES = 8
"""Control messages of a node in a round."""
POLL_S = 0.25
MAX_ATTEMPTS = 10
"""Of one round; machines do not change, so what fails this often fails always."""


@dataclass(frozen=True)
class Machine:
    """A volunteer's machine and line. Rates in bits per second, times in seconds."""

    step_s: float
    """An inner step."""
    down: float = 100e6
    up: float = 20e6
    latency: float = 0.05
    """Of a request and its reply."""


@dataclass(frozen=True)
class Load:
    """What a round moves and computes on every node."""

    parameters: int
    bits: float
    """Per parameter, of one contribution."""
    encode_bytes_per_s: float
    """fp32 input of the encoder."""
    decode_bytes_per_s: float
    """fp32 equivalent of one contribution, decoded and accumulated."""
    state_bytes_per_s: float
    """fp32 state written and hashed."""
    fragments: int = 1

    @property
    def elements(self) -> int:
        """Parameters that one round exchanges."""
        return self.parameters // self.fragments

    @property
    def payload(self) -> float:
        """Bytes of one contribution."""
        return self.elements * self.bits / 8 + HEADER_BYTES


@dataclass(frozen=True)
class Traffic:
    """Bytes of a node in a round."""

    reveal_up: float
    """Its contribution, to the coordinator."""
    apply_up: float
    apply_down: float
    """What is fetched and served once the round is closed."""
    ledger: float
    """Entries about everybody, received, and control messages."""

    @property
    def up(self) -> float:
        return self.reveal_up + self.apply_up

    @property
    def down(self) -> float:
        return self.apply_down


@dataclass(frozen=True)
class Forecast:
    """What came out: of the rounds after the first, which has no tail before it."""

    round_s: float
    """Mean length of a round."""
    utilisation: float
    """Part (0 to 1) of the time that the median node spends in inner steps."""
    exposed_s: float
    """Mean time per round in which the median node waits for the exchange."""
    up: float
    down: float
    """Bytes of a node in a round."""
    tokens: int
    """Trained and accepted in all."""
    rejected: int


def traffic(load: Load, work: Work, members: int, *, coordinator_serves: bool = True) -> Traffic:
    """Bytes of one node in a round of ``members``.

    ``gather``: a node gives its contribution to the coordinator and gets those of all others; they
    serve each other. ``sharded``: it also gets its slice of all contributions, the same again for
    the slice that it checks, and the other slices' aggregates; it serves as much.

    :param coordinator_serves: every contribution goes to the coordinator too, which serves one copy
        of what is needed; without it (thousands of nodes) nodes serve everything among themselves
    """
    payload, others = load.payload, members - 1
    ledger = MESSAGES * MESSAGE_BYTES + members * ENTRY_BYTES
    pushed = payload if coordinator_serves else 0.0
    if work.topology_of(members) == "gather" or members == 1:
        moved = payload * others
        served = max(0.0, moved - pushed)
        return Traffic(pushed, served, moved, ledger)
    slices = members
    headers = (slices - 1) * HEADER_BYTES
    # Of the list of its slices a node gets the item of each of its two with its proof.
    index = min(index_bytes(slices), items_bytes(1, slices))
    inputs = (payload + headers) * others / members + index * others
    aggregates = (payload + headers) * others / members
    down = inputs + aggregates + inputs  # the second inputs are those of the slice that it checks
    up = down - (inputs if coordinator_serves else 0.0)
    return Traffic(pushed, up, down, ledger + slices * ENTRY_BYTES)


def forecast(
    rules: round_state.RoundRules, work: Work, load: Load, machines: list[Machine], steps: list[int]
) -> Forecast:
    """Run ``rules.total`` rounds in virtual time.

    :param steps: inner steps that each machine is assigned in every round
    :raises CheckFailed: a round fails again and again: the machines cannot keep the rules' times
    """
    swarm = _Swarm(rules, work, load, machines, steps)
    swarm.run()
    return swarm.forecast()


class _Node:
    """One machine: what it does is decided by the directives of the real state machine."""

    def __init__(self, peer: str, machine: Machine, steps: int) -> None:
        self.peer, self.machine, self.steps = peer, machine, steps
        self.free = 0.0  # when the main lane has made the steps that it was given
        self.computing: dict[int, float] = {}  # seconds of inner steps, by round
        self.waited: dict[int, float] = {}
        self.tail_made = 0
        self.busy = ""  # what it is doing for the present attempt


class _Swarm:
    """Machines and a coordinator; events in order of their time."""

    def __init__(
        self,
        rules: round_state.RoundRules,
        work: Work,
        load: Load,
        machines: list[Machine],
        steps: list[int],
    ) -> None:
        # Everybody is there all the time: presence is not what is simulated.
        self._rules = replace(rules, heartbeat_timeout=math.inf)
        self._work, self._load = work, load
        seeds = (number.to_bytes(32, "big") for number in itertools.count(1))
        peers = sorted(peer_id_of(seed) for seed, _ in zip(seeds, machines, strict=False))
        self._nodes = {
            peer: _Node(peer, machine, count)
            for peer, machine, count in zip(peers, machines, steps, strict=True)
        }
        self._state = RunState(
            Phase.WAITING,
            round=0,
            attempt=0,
            base=_root(0),
            since=0.0,
            peers={peer: Presence(0.0, _root(0)) for peer in peers},
        )
        self._queue: list[tuple[float, int, round_state.Event]] = []
        self._order = itertools.count()
        self._opened: list[float] = []
        self._tokens = self._rejected = 0
        # A coordinator looks four times a second; to simulate that in long rounds would take long.
        self._poll = max(POLL_S, min(machine.step_s for machine in machines) / 8)
        self._tails: dict[str, int] = {}

    def run(self) -> None:
        """Let time pass until the run is finished."""
        now = 0.0
        self._feed(round_state.Tick(now))
        while self._state.phase is not Phase.FINISHED:
            if not self._queue or self._queue[0][0] > now + self._poll:
                now += self._poll
                self._feed(round_state.Tick(now))
                continue
            now, _, event = heapq.heappop(self._queue)
            self._feed(event)
        self._opened.append(now)

    def _feed(self, event: round_state.Event) -> None:
        if isinstance(event, round_state.Seen) and event.root != self._state.base:
            return  # what it has computed for an attempt that failed meanwhile is not kept
        self._state, actions = rounds.step(self._rules, self._state, event)
        if self._state.attempt == MAX_ATTEMPTS:
            raise CheckFailed(
                f"round {self._state.round} fails again and again",
                "give deadline_s, reveal_s or settle_s of [rounds] more time",
            )
        for action in actions:
            if isinstance(action, round_state.OpenRound):
                self._opened.append(event.now)
            elif isinstance(action, round_state.CloseRound):
                self._rejected += len(action.rejected)
                self._close(action)
        if any(not isinstance(action, round_state.Refuse) for action in actions):
            for node in self._nodes.values():
                self._direct(node, event.now)

    def _close(self, action: round_state.CloseRound) -> None:
        for peer in action.accepted:
            node = self._nodes[peer]
            head = self._work.head(action.round, node.steps)
            self._tokens += self._work.tokens(head + self._tails.get(peer, 0))
        self._tails = {
            peer: self._work.tail(action.round, self._nodes[peer].steps) for peer in action.accepted
        }

    def _direct(self, node: _Node, now: float) -> None:
        """Give the node its directive, and schedule what it does about it."""
        duty = duties.directive(self._rules, self._state, node.peer, now)
        key = f"{duty.task}/{self._state.round}/{self._state.attempt}"
        if node.busy == key or duty.task not in ("train", "reveal", "apply", "sync"):
            return
        node.busy = key
        for at, event in getattr(self, f"_{duty.task}")(node, now + node.machine.latency):
            heapq.heappush(self._queue, (at, next(self._order), event))

    def _train(self, node: _Node, now: float) -> Iterator[tuple[float, round_state.Event]]:
        state, machine = self._state, node.machine
        begin = max(now, node.free)
        node.waited[state.round] = begin - node.free
        head = self._work.head(state.round, node.steps) * machine.step_s
        encode = 4 * self._load.elements / self._load.encode_bytes_per_s
        tail = self._work.tail(state.round, node.steps) * machine.step_s
        done = begin + head + encode
        node.computing[state.round] = head + tail
        node.free = done + tail
        yield (
            done + machine.latency,
            round_state.Committed(
                done + machine.latency, node.peer, state.round, state.attempt, _root(state.round)
            ),
        )

    def _reveal(self, node: _Node, now: float) -> Iterator[tuple[float, round_state.Event]]:
        state, machine = self._state, node.machine
        moved = traffic(self._load, self._work, len(state.members))
        done = now + 8 * moved.reveal_up / machine.up + 2 * machine.latency
        yield done, round_state.Revealed(done, node.peer, state.round, state.attempt, "")

    def _apply(self, node: _Node, now: float) -> Iterator[tuple[float, round_state.Event]]:
        state, machine, load = self._state, node.machine, self._load
        members = len(state.members)
        moved = traffic(load, self._work, members)
        seconds = max(8 * moved.apply_up / machine.up, 8 * moved.apply_down / machine.down)
        decoded = 4 * load.elements * (members if self._gathers(members) else 3)
        seconds += decoded / load.decode_bytes_per_s + 4 * load.parameters / load.state_bytes_per_s
        done = now + seconds + 4 * machine.latency
        root = _root(state.round + 1)
        yield done, round_state.StateSigned(done, node.peer, state.round, state.attempt, root)
        # When a majority was enough already, the next heartbeat says the same.
        yield done + machine.latency, round_state.Seen(done + machine.latency, node.peer, root)

    def _sync(self, node: _Node, now: float) -> Iterator[tuple[float, round_state.Event]]:
        """After an attempt that failed a node goes back to the state that it has kept."""
        yield now, round_state.Seen(now, node.peer, self._state.base)

    def _gathers(self, members: int) -> bool:
        return self._work.topology_of(members) == "gather"

    def forecast(self) -> Forecast:
        last = self._rules.total - 1
        counted = range(1, last)  # the first has no tail before it, the last has none
        span = self._opened[last] - self._opened[1]
        shares, exposed = [], []
        for node in self._nodes.values():
            computed = sum(node.computing.get(round, 0.0) for round in counted)
            shares.append(computed / span)
            exposed.append(sum(node.waited.get(r, 0.0) for r in counted) / len(counted))
        moved = traffic(self._load, self._work, len(self._nodes))
        return Forecast(
            span / len(counted),
            min(1.0, sorted(shares)[len(shares) // 2]),
            sorted(exposed)[len(exposed) // 2],
            moved.up,
            moved.down + moved.ledger,
            self._tokens,
            self._rejected,
        )


def _root(round: int) -> str:
    return f"{round:064x}"

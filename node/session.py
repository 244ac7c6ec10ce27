"""What the parts of a node share, once it has joined a run."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from artel.ledger import entries
from artel.ledger.entries.credit import unproven
from artel.ledger.store.heads import HeadStore
from artel.ledger.store.published import DATABASE_NAME
from artel.ledger.sync.replica import Replica
from artel.ledger.sync.serving import caller
from artel.ledger.sync.witness import Witness
from artel.node.account_link import Linked, Owner
from artel.node.claim_file import ClaimFile
from artel.node.link import Link
from artel.node.sealing import Sealing
from artel.node.supervisor import Trainer
from artel.protocol import messages
from artel.protocol.amending import amended
from artel.protocol.errors import UsageError
from artel.protocol.identity import Identity
from artel.protocol.manifest import Manifest
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.host import Host
from artel.protocol.net.slots import Caller, Rank
from artel.protocol.run_config import RoundsSection, RunConfig
from artel.protocol.state import state_bytes


@dataclass
class Session:
    """One node in one run. Each part owns what its own module says; the session owns nothing."""

    home: Path
    run: str
    manifest: Manifest
    identity: Identity
    account: Owner
    host: Host
    link: Link
    sealing: Sealing
    replica: Replica
    heads: HeadStore
    witness: Witness
    claims: ClaimFile
    blobs: BlobStore
    fingerprints: BlobStore
    """Of this process's steps, for the coordinator and for nobody else."""
    trainer: Trainer
    device: str
    recovery: str = ""
    """Digest of the account's recovery key, for its registration."""

    @property
    def manifest_file(self) -> Path:
        return self.home / "manifest.json"

    @property
    def work_dir(self) -> Path:
        """Where the trainer leaves files before they are taken into the content store."""
        return self.home / "work"

    @property
    def state_bytes(self) -> int:
        """Of a state file of this run."""
        return state_bytes(self.manifest.model.parameters, self.manifest.config.exchange.outer)

    def changes_at(self, round: int) -> dict[str, str]:
        """What the organiser has amended of the manifest for a round, by our copy of the ledger."""
        return self.replica.state.changes_at(round)

    def config_at(self, round: int) -> RunConfig:
        """The run's configuration as it is in a round."""
        return amended(self.manifest.config, self.changes_at(round))

    @property
    def rounds(self) -> RoundsSection:
        """The rules of the round that is under way or comes next."""
        return self.config_at(self.replica.state.round).rounds

    @property
    def holders(self) -> int:
        """How many members are given each slice of a contribution; 0: the coordinator takes all."""
        return self.manifest.config.exchange.holders

    @property
    def account_name(self) -> str:
        """The name of the owner's account: its first key, which may not be the present one."""
        return self.replica.state.keys.get(self.account.key, self.account.key)

    def caller(self, peer: str) -> Caller:
        """What is known of a peer: by the ledger, or that it coordinates the run."""
        if peer in (*self.link.coordinators, self.link.coordinator, self.link.near):
            return Caller(Rank.KNOWN)
        return caller(self.replica.state, peer)

    async def hello(self) -> messages.Hello:
        """The request to take part.

        :raises UsageError: the owner's key has been replaced by another one; or the node belongs to
            another account, which would lose credit
        """
        addresses = await self.host.addresses()
        return messages.Hello(run=self.run, statements=self.registration(), addresses=addresses)

    def registration(self) -> list[bytes]:
        """Those of the signed entries (account, node) that the replica does not have yet.

        :raises UsageError: as :meth:`hello`
        """
        state, name = self.replica.state, self.account_name
        known = state.accounts.get(name)
        if known is not None and known.key != self.account.key:
            raise UsageError(
                f"the key of account {name[:16]}… was replaced in this run",
                "start with its present key: --account FILE",
            )
        statements = []
        if known is None or not known.registered:
            statements.append(
                self.account.account
                if isinstance(self.account, Linked)
                else entries.account(self.account, self.run, self.recovery)
            )
        peer = self.identity.peer_id
        before = state.account_of(peer)
        if before != name:
            lost = sum(credit.amount for credit in unproven(state, peer, before)) if before else 0
            if lost:
                raise UsageError(
                    f"this node works for account {before[:16]}…, which would lose {lost:,} "
                    "credit: what nobody has found right yet goes when the node leaves it",
                    "start a node of its own for the other account: --home with an empty folder",
                )
            seq = state.node_seq.get(peer, 0) + 1
            if isinstance(self.account, Linked):
                if (self.account.asked.run, self.account.asked.seq) != (self.run, seq):
                    raise UsageError(
                        "what the account has signed for this node is for another run, or was used",
                        "ask it again: artel account link --home HOME",
                    )
                statements.append(self.account.bound(self.identity))
            else:
                statements.append(
                    entries.node(self.identity, self.account, self.run, account=name, seq=seq)
                )
        return [statement.encode() for statement in statements]


def remembered(home: Path, key: str, run: str, stack: AsyncExitStack) -> tuple[HeadStore, Replica]:
    """What a home has signed, and its copy of the ledger; ``stack`` closes them.

    Where the first is gone, nothing of the present term is signed here any more: it may have been
    sealed.

    :param key: of the node (hex)
    :raises ArtelError: as :meth:`HeadStore.owned` and :meth:`Replica.open`
    """
    heads = HeadStore.owned(home, key)
    stack.callback(heads.close)
    replica = Replica.open(home / DATABASE_NAME, run, heads)
    stack.callback(replica.store.close)
    if heads.gone and replica.store.size:
        heads.seal(run, replica.state.term.number)
    return heads, replica

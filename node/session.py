"""What the parts of a node share, once it has joined a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ledger import entries
from ledger.replica import Replica
from node.link import Link
from node.supervisor import Trainer
from protocol.blobs import BlobStore
from protocol.identity import Identity
from protocol.manifest import Manifest
from protocol.network import Host


@dataclass
class Session:
    """One node in one run. Each part owns what its own module says; the session owns nothing."""

    home: Path
    run: str
    manifest: Manifest
    identity: Identity
    account: Identity
    host: Host
    link: Link
    replica: Replica
    blobs: BlobStore
    trainer: Trainer
    device: str
    threads: int

    @property
    def manifest_file(self) -> Path:
        return self.home / "manifest.json"

    @property
    def work_dir(self) -> Path:
        """Where the trainer leaves files before they are taken into the content store."""
        return self.home / "work"

    def registration(self) -> tuple[bytes, bytes]:
        """The two signed entries that admit this node: its account, and the binding to it."""
        return (
            entries.account(self.account, self.run).encode(),
            entries.node(self.identity, self.account, self.run).encode(),
        )

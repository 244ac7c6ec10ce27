"""Ed25519 identities: nodes, coordinators, organisers and accounts.

A node's key *is* its libp2p identity: the peer id is the identity multihash of the public key
(libp2p specs, "Peer Ids and Keys"), so whoever knows a peer id knows the key that signs for it.
Key files hold libp2p's ``PrivateKey`` protobuf (``08 01 12 40`` + 32-byte seed + 32-byte public
key), the form that the network daemon reads too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from artel.protocol import files
from artel.protocol.errors import DecodeError, ResourceError, UsageError

_PRIVATE_PREFIX = bytes.fromhex("08011240")  # protobuf: type = Ed25519, data = 64 bytes
_PEER_ID_PREFIX = bytes.fromhex("002408011220")  # multihash: identity, 36 bytes; protobuf: 32 bytes
LOCK_FILE = "lock"
KEY_FILE_BYTES = len(_PRIVATE_PREFIX) + 64


@dataclass(frozen=True)
class Identity:
    """A private key with its public names.

    ``public`` is the 32-byte public key; ``key`` its lower-case hex (what the ledger stores);
    ``peer_id`` the libp2p name in base58 (what the network uses).
    """

    seed: bytes
    public: bytes

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of a 32-byte Ed25519 seed (RFC 8032 section 5.1.5)."""
        return cls(seed, Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())

    @property
    def key(self) -> str:
        return self.public.hex()

    @property
    def peer_id(self) -> str:
        return peer_id_of(self.public)

    @cached_property
    def elected(self) -> Identity:
        """The one with which a node's own coordinator leads, should members choose the node: always
        the same (HKDF, RFC 5869), so that it can be named before."""
        derive = HKDF(SHA256(), 32, salt=None, info=b"artel/elected").derive
        return Identity.from_seed(derive(self.seed))

    def sign(self, message: bytes) -> bytes:
        """64-byte Ed25519 signature."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(message)

    def encode(self) -> bytes:
        """The bytes of a key file."""
        return _PRIVATE_PREFIX + self.seed + self.public

    def __repr__(self) -> str:  # never print the seed
        return f"Identity({self.peer_id})"


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether ``signature`` (64 bytes) over ``message`` was made by the 32-byte key ``public``."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=4096)  # base58 is slow, and a run's nodes are few
def peer_id_of(public: bytes) -> str:
    """Base58 peer id of a 32-byte public key."""
    return str(base58.b58encode(_PEER_ID_PREFIX + public), "ascii")


@lru_cache(maxsize=4096)
def public_of(peer_id: str) -> bytes:
    """The 32-byte public key inside an Ed25519 peer id.

    :raises DecodeError: when it is no Ed25519 peer id
    """
    try:
        # The decoder ignores white space at the end, which would give one key many names.
        spaced = peer_id[-1:].isspace()
        raw = base58.b58decode(peer_id) if len(peer_id) <= 64 and not spaced else b""
    except ValueError:
        raw = b""
    if len(raw) != len(_PEER_ID_PREFIX) + 32 or not raw.startswith(_PEER_ID_PREFIX):
        raise DecodeError(f"{peer_id[:64]!r} is not an Ed25519 peer id")
    return raw[len(_PEER_ID_PREFIX) :]


def short_peer(peer: str) -> str:
    """A node, for people; all peer ids begin alike, so the end is shown."""
    return f"…{peer[-8:]}"


def load(path: Path) -> Identity:
    """Read a key file.

    :raises UsageError: when the file is missing, is no key, or can be read by other users
    """
    try:
        data = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(
            f"cannot read the key file {path}: {error.strerror}", "restore it from your backup"
        ) from None
    if mode & 0o077:
        raise UsageError(
            f"the key file {path} can be read by other users of this machine",
            f"run: chmod 600 {path}",
        )
    if len(data) != KEY_FILE_BYTES or not data.startswith(_PRIVATE_PREFIX):
        raise UsageError(f"{path} is not an Artel key file", "restore it from your backup")
    identity = Identity.from_seed(data[4:36])
    if identity.public != data[36:]:
        raise UsageError(f"the key file {path} is damaged", "restore it from your backup")
    return identity


def load_or_create(path: Path, identity: Identity | None = None) -> Identity:
    """Read the key at ``path``; when there is none, make one (mode 0600, durable before use).

    :param identity: to be left there instead of a new one
    :raises ResourceError: its folder cannot be made
    :raises UsageError: there is another key than ``identity``
    """
    if path.exists():
        found = load(path)
        if identity is not None and found != identity:
            raise UsageError(
                f"{path} is the key of somebody else than of whom it should be",
                "choose an empty folder: --home DIR",
            )
        return found
    identity = identity or Identity.from_seed(os.urandom(32))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise no_home(path.parent, error) from None
    # O_EXCL: two processes that race for a new home must not each believe in their own key.
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return load(path)
    with os.fdopen(descriptor, "wb") as file:
        file.write(identity.encode())
        file.flush()
        os.fsync(file.fileno())
    return identity


def no_home(home: Path, error: OSError) -> ResourceError:
    """The error for a person whose ``--home`` cannot be one."""
    reason = error.strerror or str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "it is a file, or lies below one"
    return ResourceError(
        f"cannot use the home directory {home}: {reason}",
        "choose a folder that you can write to: --home DIR",
    )


def closed(home: Path) -> bool:
    """Let nobody but the owner into a home that was left open; False: it is not ours to change.

    What a lock's process makes in there is closed by itself (see :class:`HomeLock`).
    """
    mode = home.stat().st_mode
    if not mode & 0o077:
        return True
    # Somebody's home or working directory is more than ours.
    if str(home.resolve()) in (os.path.expanduser("~"), str(Path.cwd())):
        return False
    try:
        home.chmod(stat.S_IMODE(mode) & ~0o077)
    except PermissionError:
        return False
    return True


def in_use(home: Path) -> bool:
    """Whether a process holds the :class:`HomeLock` of a home."""
    try:
        descriptor = os.open(home / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


class HomeLock:
    """Exclusive use of a home directory by one process, held until :meth:`release`.

    The kernel drops the lock when the process ends, however it ends. As long as it is held, what
    this process and its children make (SQLite, torch and the network daemon, too) is for its owner
    alone: folders 0700, files 0600, whatever the umask was.

    What killed processes have left unfinished there is removed.

    :raises ResourceError: when another process holds the lock, or there can be no home
    :raises UsageError: when the folder has a file called ``lock`` that is no such lock
    """

    def __init__(self, home: Path) -> None:
        self._umask = os.umask(0o077)
        try:
            self._lock(home)
        except BaseException:
            os.umask(self._umask)
            raise
        if not closed(home):
            print(
                f"warning: other users of this machine may be able to read {home}; "
                f"chmod -R go= would keep them out",
                file=sys.stderr,
            )

    def _lock(self, home: Path) -> None:
        self.path = home / LOCK_FILE
        self._is_new = not home.exists()
        try:
            home.mkdir(parents=True, exist_ok=True)
            files.require_ours(self.path, lambda data: not data or data.strip().isdigit())
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise no_home(home, error) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise ResourceError(
                f"another process ({owner or 'unknown'}) is using the home directory {home}",
                "stop it first, or give this one its own --home DIR",
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        files.sweep(home)

    def abandon(self) -> None:
        """Nothing comes of it: a home that this process has made goes again, with all in it."""
        if self._is_new:
            shutil.rmtree(self.path.parent, ignore_errors=True)

    def release(self) -> None:
        os.close(self._descriptor)
        os.umask(self._umask)

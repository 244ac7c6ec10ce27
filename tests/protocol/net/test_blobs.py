"""The content store: what is evicted, what never is, and what a restart finds."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from artel.protocol import content
from artel.protocol.errors import ResourceError
from artel.protocol.net.blobs import BlobStore


def numbered(number: int, size: int = 1000) -> bytes:
    return bytes([number]) * size


def aged(store: BlobStore, *blobs: str) -> None:
    """Make these the least recently used, the first one the oldest."""
    for second, blob in enumerate(blobs):
        os.utime(store.root / blob, (second, second))


def used(store: BlobStore) -> int:
    """Bytes of all finished files."""
    return sum(store._sizes.values())


def files(store: BlobStore) -> set[str]:
    return {path.name for path in store.root.iterdir()}


def test_bytes_come_back_under_their_content_id(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    blob = store.put(numbered(1))
    path = store.path(blob)
    assert blob == content.content_id(numbered(1))
    assert path is not None
    assert path.read_bytes() == numbered(1)
    assert (store.has(blob), store.size_of(blob), used(store)) == (True, 1000, 1000)
    assert store.put(numbered(1)) == blob
    assert used(store) == 1000


def test_a_file_is_moved_in(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    for _ in range(2):  # the second time it is there already
        (tmp_path / "made").write_bytes(numbered(1))
        blob = store.put_file(tmp_path / "made")
        assert not (tmp_path / "made").exists()
        assert files(store) == {blob}


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, quota_bytes=3000)
    one, two, three = (store.put(numbered(n)) for n in (1, 2, 3))
    aged(store, one, two, three)
    assert store.path(one) is not None  # a use
    four = store.put(numbered(4))
    assert files(store) == {one, three, four}
    assert used(store) == 3000
    aged(store, four, one, three)
    five = store.put(numbered(5, 2000))
    assert files(store) == {five, three}


def test_pinned_content_is_never_evicted(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, quota_bytes=3000)
    one, two, three = (store.put(numbered(n)) for n in (1, 2, 3))
    aged(store, one, two, three)
    store.pin(one, two)
    four = store.put(numbered(4))
    assert files(store) == {one, two, four}
    store.unpin(one)
    aged(store, one)
    five = store.put(numbered(5))
    assert files(store) == {two, four, five}


def test_a_quota_that_is_too_small_evicts_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, quota_bytes=3000)
    one, two = store.put(numbered(1)), store.put(numbered(2))
    store.pin(one)
    with pytest.raises(ResourceError, match="quota") as error:
        store.put(numbered(3, 2500))
    assert "--quota" in error.value.hint
    assert files(store) == {one, two}
    assert store.has(two)


def test_taking_the_same_content_twice_needs_no_room(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", quota_bytes=2000)
    one, two = store.put(numbered(1)), store.put(numbered(2))
    again = tmp_path / "again"
    again.write_bytes(numbered(2))
    store.adopt(two, again)
    assert files(store) == {one, two}
    assert used(store) == 2000


def test_a_restart_finds_the_files_and_only_them(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    one = store.put(numbered(1))
    store.partial("ab" * 32).write_bytes(b"half a download")
    stray = {"README", "x" * 64, "AB" * 32, "ab" * 31}
    for name in stray:
        (tmp_path / name).write_bytes(b"stray")
    (tmp_path / ("cd" * 32)).mkdir()
    (tmp_path / f"{'ef' * 32}.0a1b2c3d.put").write_bytes(b"an upload that was cut off")
    again = BlobStore(tmp_path, quota_bytes=1000)
    again.resume("ab" * 32)
    assert used(again) == 1000
    assert again.has(one)
    assert not any(again.has(name) for name in (*stray, "ab" * 32, "cd" * 32))
    two = again.put(numbered(2))
    # What is not ours stays; downloads go on, uploads never do.
    assert files(again) == {two, *stray, f"{'ab' * 32}.part", "cd" * 32}


def test_what_an_earlier_process_had_of_a_download_counts_and_goes_first(tmp_path: Path) -> None:
    parts = [BlobStore(tmp_path).partial(f"{n}b" * 32) for n in range(3)]
    for second, part in enumerate(parts):
        part.write_bytes(bytes(1000))
        os.utime(part, (second, second))
    store = BlobStore(tmp_path, quota_bytes=3000)
    store.resume("0b" * 32)  # goes on: what is under way does not have to go
    one = store.put(numbered(1))
    two = store.put(numbered(2))
    assert files(store) == {one, two, parts[0].name, parts[2].name}
    store.interrupt("0b" * 32)
    three = store.put(numbered(3))
    assert files(store) == {one, two, three}
    parts[0].write_bytes(bytes(2000))
    store.interrupt("0b" * 32)
    store.pin(one, two, three)
    with pytest.raises(ResourceError, match="quota"):
        store.put(numbered(4))
    assert parts[0].exists()


def test_a_file_deleted_by_hand_is_noticed(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    blob = store.put(numbered(1))
    (tmp_path / blob).unlink()
    assert store.path(blob) is None
    assert (store.has(blob), used(store), store.chunk_hashes(blob)) == (False, 0, None)
    assert store.put(numbered(1)) == blob
    assert store.path(blob) is not None


def test_delete_takes_pinned_content_too(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    blob = store.put(numbered(1))
    store.pin(blob)
    store.delete(blob)
    store.delete(blob)
    assert files(store) == set()
    assert used(store) == 0


def test_chunk_hashes_are_those_of_the_content(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    data = numbered(1, content.CHUNK_BYTES) + numbered(2, 5)
    blob = store.put(data)
    assert store.chunk_hashes(blob) == content.chunk_hashes(data)
    assert store.chunk_hashes(blob) == content.chunk_hashes(data)  # now from memory
    for number in range(70):
        store.chunk_hashes(store.put(numbered(number)))
    assert len(store._hashes) <= 64


def test_content_that_has_rotted_is_removed_when_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, data = BlobStore(tmp_path), numbered(1)
    blob = store.put(data)
    again = BlobStore(tmp_path)  # knows no hashes of it
    assert again.sound(blob) == tmp_path / blob
    (tmp_path / blob).write_bytes(numbered(2))
    assert again.chunk_hashes(blob) is None
    assert (again.has(blob), files(again)) == (False, set())
    store.put(data)
    store = BlobStore(tmp_path)
    store.put(data)
    with monkeypatch.context() as patched:

        def fails(path: Path) -> list[bytes]:
            raise OSError(errno.EIO, "Input/output error")

        patched.setattr(content, "file_chunk_hashes", fails)
        assert store.sound(blob) is None
    assert (store.has(blob), files(store)) == (False, set())


def test_what_is_adopted_while_the_old_file_is_looked_at_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, data, right = BlobStore(tmp_path / "blobs"), numbered(1), content.file_chunk_hashes
    blob = store.put(data)
    (store.root / blob).write_bytes(numbered(2))

    def meanwhile(path: Path) -> list[bytes]:
        hashes = right(path)
        (tmp_path / "new").write_bytes(data)
        store.adopt(blob, tmp_path / "new")
        return hashes

    with monkeypatch.context() as patched:
        patched.setattr(content, "file_chunk_hashes", meanwhile)
        store.sound(blob)
    assert store.sound(blob) == store.root / blob


def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = BlobStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="the disk is full") as error:
            store.put(numbered(1))
    assert "free some space" in error.value.hint
    assert files(store) == set()
    assert store.has(store.put(numbered(1)))


def test_a_home_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot write"):
        BlobStore(tmp_path / "file" / "blobs")

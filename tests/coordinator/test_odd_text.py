"""What people really have on their disks: it is read, or refused or left out with a word."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from artel.coordinator import sources, text_files
from artel.coordinator.text_files import zstd
from artel.protocol.errors import ResourceError, UsageError
from artel.protocol.run_file import parse_config
from command_world import group
from text_world import RUN, text_source, texts_of, write_run

main = group("run")

LINE = "the cat sat on the mat and looked at the moon.\n"
TEXT = LINE * 300
MARK = b"\xef\xbb\xbf"


def inventory_of(folder: Path) -> sources.Inventory:
    return sources.take_inventory(text_source(folder.name), folder.parent)


def parquet(*texts: str | None, column: str = "text") -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    sink = pyarrow.BufferOutputStream()
    pq.write_table(pyarrow.table({column: list(texts), "n": list(range(len(texts)))}), sink)
    return bytes(sink.getvalue())


def jsonl(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


PAGE = """<!DOCTYPE html><html><head><title>A  page</title><style>p {color: red}</style>
<script>var x = "<p>no</p>";</script></head><body><h1>Cats &amp; dogs</h1><p>One <b>two</b>
three.<br>four</p><template><p>never</p></template><pre>  kept
   so</pre><ul><li>a<li>b</ul></body></html>"""
PAGE_TEXT = "A page\nCats & dogs\nOne two three.\nfour\n  kept\n   so\na\nb\n"


@pytest.mark.parametrize(
    ("name", "data", "texts"),
    [
        ("a.txt", TEXT.encode(), [TEXT]),
        ("a.TXT", TEXT.encode(), [TEXT]),
        ("a.Md", TEXT.encode(), [TEXT]),
        ("a.rst", b"Title\n=====\n", ["Title\n=====\n"]),
        ("bom.txt", MARK + TEXT.encode(), [TEXT]),
        ("bom.jsonl", MARK + jsonl("one", "two"), ["one", "two"]),
        ("bom.txt.gz", gzip.compress(MARK + b"text\n", mtime=0), ["text\n"]),
        ("bom.html", MARK + b"<p>x", ["x\n"]),
        ("a.JSONL", jsonl("one", "two"), ["one", "two"]),
        ("a.json", jsonl("one", "two"), ["one", "two"]),
        ("a.txt.gz", gzip.compress(TEXT.encode(), mtime=0), [TEXT]),
        (
            "two members.txt.gz",
            gzip.compress(b"one ", mtime=0) + gzip.compress(b"two", mtime=0),
            ["one two"],
        ),
        ("a.Jsonl.GZ", gzip.compress(jsonl("one", "two"), mtime=0), ["one", "two"]),
        ("a.jsonl.zst", zstd.compress(jsonl("one", "two")), ["one", "two"]),
        ("two frames.txt.zst", zstd.compress(b"one ") + zstd.compress(b"two"), ["one two"]),
        ("a.html", PAGE.encode(), [PAGE_TEXT]),
        ("a.HTM.gz", gzip.compress(PAGE.encode(), mtime=0), [PAGE_TEXT]),
        ("crlf.txt", b"a\r\nb\r\n", ["a\r\nb\r\n"]),
        ("nul.txt", b"a\x00b", ["a\x00b"]),
        ("emoji.txt", "👩‍👩‍👧‍👦 ﷽ e\u0301 \u202e\n".encode(), ["👩‍👩‍👧‍👦 ﷽ e\u0301 \u202e\n"]),
        ("end.txt", b"a<|endoftext|>b", ["a<|endoftext|>b"]),
        ("ü ñ.txt", b"spaces", ["spaces"]),
        ("new\nline.txt", b"x", ["x"]),
        (os.fsdecode(b"caf\xe9.txt"), b"x", ["x"]),
    ],
)
def test_text_is_read_whatever_it_is_written_in(
    tmp_path: Path, name: str, data: bytes, texts: list[str]
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_bytes(data)
    inventory = inventory_of(tmp_path / "d")
    assert inventory.documents == len(texts)
    assert not inventory.skipped.files
    (part,) = inventory.parts
    pieces = list(sources.pieces(part))
    assert "".join(text for text, _ in pieces) == "".join(texts)
    assert sum(ends for _, ends in pieces) == len(texts)


def test_a_table_is_read_row_by_row(tmp_path: Path) -> None:
    texts = [f"row {number} é\n" for number in range(1000)]
    (tmp_path / "a.parquet").write_bytes(parquet(*texts))
    inventory = sources.take_inventory(text_source("a.parquet"), tmp_path)
    assert inventory.documents == 1000
    train, validation = sources.split(inventory.parts, 0.1)
    read = [text for part in (*train, *validation) for text, _ in sources.pieces(part)]
    assert read == texts


@pytest.mark.parametrize("packed", [gzip.compress, zstd.compress])
def test_packed_text_is_split_and_sampled_like_plain_text(
    tmp_path: Path, packed: Callable[[bytes], bytes]
) -> None:
    text = "".join(f"line {number} é\n" for number in range(200_000)).encode()
    ending = ".gz" if packed is gzip.compress else ".zst"
    (tmp_path / "plain.txt").write_bytes(text)
    (tmp_path / f"packed.txt{ending}").write_bytes(packed(text))
    results = []
    for name in ("plain.txt", f"packed.txt{ending}"):
        parts = sources.take_inventory(text_source(name), tmp_path).parts
        sampled = sources.sample(parts, 1_500_000)
        splits = sources.split(sampled, 0.1)
        results.append([(part.digest, part.start, part.stop) for (part,) in splits])
        assert [texts_of(split)[0].encode() for split in splits] == [
            text[start:stop] for _, start, stop in results[-1]
        ]
    assert results[0] == results[1]
    # The same text, packed and not, is one file.
    assert len(sources.take_inventory(text_source("."), tmp_path).parts) == 1


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("latin.txt", b"caf\xe9", "latin.txt:1 is not UTF-8"),
        ("latin.html", b"<p>\n\xe9", "latin.html:2 is not UTF-8"),
        ("utf16.txt", TEXT.encode("utf-16"), "utf16.txt:1 is not UTF-8"),
        (os.fsdecode(b"caf\xe9.txt"), b"\xff\xfe\n", "caf?.txt:1 is not UTF-8"),
        ("half.jsonl", b'{"text":"bad \\ud83d half"}\n', "half a surrogate"),
        ("null.jsonl", b'{"text":"x"}\n{"text":null}\n', "null.jsonl:2 has no field"),
        ("late.json", b'{"text":"x"}\n{"content":"x"}\n', "late.json:2 has no field"),
        ("a.jsonl.gz", b"\x1f\x8b" + b"0" * 5000, "a.jsonl.gz is damaged"),
        ("no.txt.gz", b"plain text", "no.txt.gz is damaged"),
        ("cut.txt.gz", gzip.compress(os.urandom(999))[:-300], "cut.txt.gz is damaged"),
        ("no.txt.zst", b"plain text", "no.txt.zst is damaged"),
        ("cut.txt.zst", zstd.compress(os.urandom(999))[:-300], "cut.txt.zst is damaged"),
        ("no.parquet", b"PAR1" + b"0" * 5000, "no.parquet is damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "good.txt").write_text(TEXT)
    (tmp_path / "d" / name).write_bytes(data)
    with pytest.raises(UsageError) as caught:
        inventory_of(tmp_path / "d")
    assert words in caught.value.message
    assert caught.value.message.isprintable()
    assert "\n" not in caught.value.message


def test_tables_without_text_are_refused(tmp_path: Path) -> None:
    for data, words in (
        (parquet("x", column="body"), "no column"),
        (parquet("x", None), "a.parquet:2 has no field"),
    ):
        (tmp_path / "a.parquet").write_bytes(data)
        with pytest.raises(UsageError, match=words):
            sources.take_inventory(text_source("a.parquet"), tmp_path)


def test_a_table_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ResourceError) as caught:
        sources.take_inventory(text_source("a.parquet"), tmp_path)
    assert "pip install pyarrow" in caught.value.hint


@pytest.mark.parametrize("name", ["bomb.txt.gz", "bomb.jsonl.zst"])
def test_a_decompression_bomb_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(text_files, "FREE_UNPACKED_BYTES", 1 << 20)
    data = (b" " * 999 + b"\n") * 8000
    pack = gzip.compress if name.endswith(".gz") else zstd.compress
    (tmp_path / name).write_bytes(pack(data))
    with pytest.raises(UsageError, match="1 MiB"):
        sources.take_inventory(text_source(name), tmp_path)


def test_a_page_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_PAGE_BYTES", 1 << 20)
    (tmp_path / "a.html.gz").write_bytes(gzip.compress(b"<p>x" * (1 << 19)))
    with pytest.raises(UsageError, match="1 MiB"):
        sources.take_inventory(text_source("a.html.gz"), tmp_path)


def test_linked_folders_are_followed_once_and_in_order(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    (data / "sub").mkdir(parents=True)
    (other / "deep").mkdir(parents=True)
    (data / "m.txt").write_text("m\n")
    (data / "sub" / "s.txt").write_text("s\n")
    (other / "o.txt").write_text("o\n")
    (other / "deep" / "d.txt").write_text("d\n")
    (tmp_path / "private.txt").write_text("p\n")
    for link, target in {
        data / "a": other,
        data / "z": other / "deep",  # read already, by way of a
        data / "sub" / "up": data,
        data / "above": tmp_path,  # would take everything that lies beside the folder
        other / "back": data,
        data / "self.txt": data / "self.txt",
        data / "gone.txt": tmp_path / "gone",
    }.items():
        link.symlink_to(target)
    os.mkfifo(data / "pipe.txt")
    inventory = inventory_of(data)
    assert [part.path.relative_to(data).as_posix() for part in inventory.parts] == [
        "a/deep/d.txt",
        "a/o.txt",
        "m.txt",
        "sub/s.txt",
    ]
    assert inventory.linked == 1
    assert inventory.skipped.files == {
        "a linked folder that is read already": 4,
        "a link that leads nowhere": 2,
        "a pipe, a socket or a device": 1,
    }
    assert "1 linked folder followed" in inventory.words()["text"]


def test_what_is_left_out_is_counted_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for name, text in {
        "a.txt": TEXT,
        "copy.txt": TEXT,
        "empty.txt": "",
        "blank.jsonl": "\n\n",
        "b.exe": "12345",
        "c.EXE": "123",
        "LICENSE": "1234567",
        "config.json": '{\n  "hidden_size": 3\n}\n',
        "\x1b]0;x\x07.\x1b[31mred": "x",
    }.items():
        (folder / name).write_text(text)
    inventory = inventory_of(folder)
    assert len(inventory.parts) == inventory.documents == 1
    files, sizes = inventory.skipped.files, inventory.skipped.bytes
    assert files["an ending that is not read, .exe"] == 2
    assert sizes["an ending that is not read, .exe"] == 8
    assert files["no ending"] == files[sources.SAME_TEXT] == files[text_files.NO_LINES] == 1
    assert files["empty"] == 2
    assert sizes["no ending"] == 7
    words = inventory.words()
    assert all(reason in words["not used"] for reason in files)
    assert words["not used"].isprintable()
    assert not inventory.warnings  # a copy is not lost, and the rest is small


def test_a_folder_of_which_little_is_used_is_a_warning_and_of_nothing_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path)
    (tmp_path / "texts" / "big.exe").write_bytes(b"x" * 1_000_000)
    assert main(["check", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split("worth a second look:")[1].split())
    assert "1,000,000 bytes" in shown
    assert ".exe: 1" in shown
    for texts in (tmp_path / "texts").glob("*.py"):
        texts.unlink()
    with pytest.raises(UsageError, match=r"no text.*\.exe: 1") as caught:
        main(["check", str(path)])
    assert ".jsonl" in caught.value.hint
    (tmp_path / "texts" / "empty.txt").touch()
    with pytest.raises(UsageError, match="empty: 1"):
        main(["check", str(path)])


def test_check_and_prepare_say_what_is_used_and_what_is_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path)
    (tmp_path / "texts" / "x.exe").write_bytes(b"12345")
    size = sum(one.stat().st_size for one in (tmp_path / "texts").glob("*.py"))
    used = f"12 files, {size:,} bytes, 12 documents"
    assert main(["check", str(path)]) == 0
    shown = capfd.readouterr().out
    assert used in shown
    assert ".exe: 1 (5 bytes)" in shown
    assert main(["check", str(path), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert (facts["data_files"], facts["data_bytes"], facts["data_documents"]) == (12, size, 12)
    assert sum(facts["data_not_used"].values()) == 1
    assert main(["prepare", str(path), "--home", str(tmp_path / "one")]) == 0
    told = capfd.readouterr().err
    assert used in told
    assert ".exe: 1 (5 bytes)" in told
    from artel.coordinator import prepare

    assert prepare.main([str(path), "--home", str(tmp_path / "two")]) == 0
    assert used in capfd.readouterr().err


def test_a_run_file_with_a_mark_is_read() -> None:
    assert parse_config(MARK + RUN.encode(), "RUN.toml") == parse_config(RUN.encode(), "RUN.toml")

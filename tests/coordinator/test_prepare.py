"""Sources and preparation: the same text gives the same run, a bad one gives one clear line."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from artel.coordinator import sources
from artel.coordinator.preparation import Prepared, manifest_path
from artel.coordinator.prepare import prepare, required_blobs
from artel.ledger.entries import Genesis, decode
from artel.protocol.assignment import assign, train_split, validation_split
from artel.protocol.errors import CheckFailed, ResourceError, UsageError
from artel.protocol.identity import HomeLock, load
from artel.protocol.manifest import open_manifest
from artel.protocol.net.blobs import BlobStore
from artel.protocol.run_config import StdlibSource
from artel.protocol.shards import ShardIndex, decode_index, decode_shard
from artel.protocol.tokenizer import Tokenizer
from text_world import RUN, text_source, texts_of, write_run, write_texts


def read_split(prepared: Prepared, home: Path, name: str) -> tuple[ShardIndex, np.ndarray]:
    manifest = prepared.manifest
    store = BlobStore(home / "blobs")
    facts = getattr(manifest.data, name)
    index_path = store.path(facts.index)
    assert index_path is not None
    index = decode_index(index_path.read_bytes(), facts)
    tokens = []
    for number, shard in enumerate(index.shards):
        path = store.path(shard)
        assert path is not None
        vocabulary = manifest.tokenizer.vocab_size
        tokens.append(decode_shard(path.read_bytes(), index, number, vocabulary))
    return index, np.concatenate(tokens)


def tokenizer_of(prepared: Prepared, home: Path) -> Tokenizer:
    path = BlobStore(home / "blobs").path(prepared.manifest.tokenizer.id)
    assert path is not None
    return Tokenizer(path.read_bytes())


def documents(tokens: np.ndarray, tokenizer: Tokenizer) -> set[str]:
    ends = np.flatnonzero(tokens == tokenizer.end_of_text)
    assert len(ends)
    assert ends[-1] == len(tokens) - 1
    return {tokenizer.decode(part.tolist()) for part in np.split(tokens, ends + 1) if len(part)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Path]:
    folder = tmp_path_factory.mktemp("prepared")
    return prepare(write_run(folder), folder / "home"), folder


def test_the_run_holds_the_whole_text_split_by_file(prepared: tuple[Prepared, Path]) -> None:
    run, folder = prepared
    tokenizer = tokenizer_of(run, folder / "home")
    train = documents(read_split(run, folder / "home", "train")[1], tokenizer)
    validation = documents(read_split(run, folder / "home", "validation")[1], tokenizer)
    assert train | validation == {path.read_text() for path in (folder / "texts").iterdir()}
    assert not train & validation
    assert len(validation) == 2  # a fifth of twelve files of nearly equal size


def test_the_manifest_is_signed_and_its_parts_are_there(prepared: tuple[Prepared, Path]) -> None:
    run, folder = prepared
    home = folder / "home"
    manifest, name = open_manifest(manifest_path(home).read_bytes())
    assert (manifest, name) == (run.manifest, run.run)
    assert manifest.organiser == load(home / "organiser.key").key
    assert manifest.coordinators == (load(home / "node.key").key,)
    store = BlobStore(home / "blobs")
    assert all(store.has(blob) for blob in required_blobs(manifest, store))
    index, _ = read_split(run, home, "train")
    assert train_split(manifest).shards == len(index.shards) > 1
    assert validation_split(manifest).windows > 0
    assert assign(3, train_split(manifest), 0, ["a"], [3], "a", batch_size=2)


def test_the_first_state_is_the_model_of_the_seed(prepared: tuple[Prepared, Path]) -> None:
    from artel.protocol import model
    from artel.protocol.state import read_state

    run, folder = prepared
    module = model.build(run.manifest.config.model, run.manifest.tokenizer.vocab_size, 3)
    layout = model.layout_of(module)
    assert layout.digest == run.manifest.model.layout
    path = BlobStore(folder / "home" / "blobs").path(run.manifest.initial_state)
    assert path is not None
    state = read_state(path, layout)
    assert state.round == 0
    assert np.array_equal(state.params, model.read_parameters(module))
    assert state.momentum is not None
    assert not state.momentum.any()


def test_contributed_text_is_named_in_the_order_of_its_tokens(tmp_path: Path) -> None:
    ada, bob = "ad" * 32, "b0" * 32
    entries_ = [("one", ada), ("two", ""), ("three", bob), ("four", bob), ("five", ada)]
    listed = []
    for name, account in entries_:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(3):
            text = "".join(f"{name} {number} line {line}\n" for line in range(60))
            (folder / f"{number}.txt").write_text(text)
        named = f', contributor = "{account}"' if account else ""
        listed.append(f'{{ kind = "text", path = "{name}"{named} }}')
    # The same content again, by somebody else, earns nothing.
    (tmp_path / "five" / "copy.txt").write_bytes((tmp_path / "three" / "0.txt").read_bytes())
    text = RUN.replace('[{ kind = "text", path = "texts" }]', f"[{', '.join(listed)}]")
    text = text.replace('kind = "bpe"\nvocab_size = 300', 'kind = "bytes"')
    run = prepare(write_run(tmp_path, text), tmp_path / "home")
    parts = run.manifest.data.contributed
    assert [part.account for part in parts] == [ada, "", bob, ada]
    assert sum(part.tokens for part in parts) == run.manifest.data.train.tokens
    one, two, three, four, five = run.manifest.data.train_by_source
    assert [part.tokens for part in parts] == [one, two, three + four, five]
    held = run.manifest.data.validation_by_source
    assert (len(held), sum(held)) == (5, run.manifest.data.validation.tokens)
    # Each stretch of tokens is the text of its contributor, and begins and ends with a document.
    _, tokens = read_split(run, tmp_path / "home", "train")
    wanted = [{"one"}, {"two"}, {"three", "four"}, {"five"}]
    start = 0
    for part, names in zip(parts, wanted, strict=True):
        stretch = tokens[start : start + part.tokens]
        written = tokenizer_of(run, tmp_path / "home").decode(stretch.tolist())
        assert {line.split(" ")[0] for line in written.splitlines()} == names
        assert stretch[-1] == Tokenizer.end_of_text
        start += part.tokens
    # And the ledger reads it from the manifest.
    genesis = decode(run.envelope).body
    assert isinstance(genesis, Genesis)
    assert genesis.rules.data is not None
    assert genesis.rules.data.contributed == tuple((p.account, p.tokens) for p in parts)


def test_a_run_without_contributors_names_nobody(prepared: tuple[Prepared, Path]) -> None:
    assert prepared[0].manifest.data.contributed == ()


def test_a_second_call_returns_the_same_run(prepared: tuple[Prepared, Path]) -> None:
    run, folder = prepared
    again = prepare(folder / "RUN.toml", folder / "home")
    assert run.fresh
    assert again == dataclasses.replace(run, fresh=False)


def test_the_same_text_gives_the_same_run_in_another_home(
    prepared: tuple[Prepared, Path], tmp_path: Path
) -> None:
    run, _ = prepared
    other = prepare(write_run(tmp_path), tmp_path / "home")
    ours, theirs = run.manifest, other.manifest
    assert theirs.organiser != ours.organiser  # each home has its own keys
    assert (theirs.tokenizer, theirs.data, theirs.model, theirs.initial_state) == (
        ours.tokenizer,
        ours.data,
        ours.model,
        ours.initial_state,
    )


def test_a_changed_file_needs_a_new_home(prepared: tuple[Prepared, Path], tmp_path: Path) -> None:
    _, folder = prepared
    changed = tmp_path / "RUN.toml"
    changed.write_text(RUN.replace("seed = 3", "seed = 4"))
    with pytest.raises(UsageError, match="tiny") as caught:
        prepare(changed, folder / "home")
    assert "--home" in caught.value.hint


def test_a_missing_part_of_a_prepared_run_is_noticed(tmp_path: Path) -> None:
    path = write_run(tmp_path, RUN.replace('kind = "bpe"\nvocab_size = 300', 'kind = "bytes"'))
    run = prepare(path, tmp_path / "home")
    assert run.manifest.tokenizer.vocab_size == 257
    (tmp_path / "home" / "blobs" / run.manifest.initial_state).unlink()
    with pytest.raises(CheckFailed, match="lacks"):
        prepare(path, tmp_path / "home")


def test_a_home_that_is_being_prepared_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    lock = HomeLock(tmp_path / "home" / "run")
    try:
        with pytest.raises(ResourceError, match="another process"):
            prepare(path, tmp_path / "home")
    finally:
        lock.release()


def test_too_little_text_for_a_round_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, RUN.replace("max_nodes = 4", "max_nodes = 32\ninner_steps = 99"))
    path.write_text(path.read_text().replace("inner_steps = 3\n", ""))
    with pytest.raises(UsageError, match="windows of 16"):
        prepare(path, tmp_path / "home")
    assert not manifest_path(tmp_path / "home").exists()


def test_a_model_that_does_not_work_is_refused_before_the_text_is_cut(tmp_path: Path) -> None:
    path = write_run(tmp_path, RUN.replace("intermediate_size", "intermediate_sise"))
    with pytest.raises(UsageError, match="intermediate_sise is no key"):
        prepare(path, tmp_path / "home")
    assert not list((tmp_path / "home" / "blobs").iterdir())


def test_more_fragments_than_tensors_are_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, RUN + "[exchange]\nfragments = 60\n")
    with pytest.raises(UsageError, match="fragments = 60") as caught:
        prepare(path, tmp_path / "home")
    assert "12 or less" in caught.value.hint
    assert not manifest_path(tmp_path / "home").exists()


def test_the_text_has_to_do_for_the_fastest_nodes_of_a_time_box(tmp_path: Path) -> None:
    """Four nodes may make four times the steps each."""
    path = write_run(tmp_path, RUN.replace("inner_steps = 3", "inner_steps = 20"))
    prepare(path, tmp_path / "home")
    path.write_text(path.read_text().replace("max_nodes = 4", "max_nodes = 4\nbox_s = 30"))
    with pytest.raises(UsageError, match="4 nodes × 80 steps"):
        prepare(path, tmp_path / "boxed")


def test_progress_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(write_run(tmp_path), tmp_path / "home")
    lines = [line for line in capsys.readouterr().err.splitlines() if ":" not in line]
    parts = [re.split(r" +(\d+) %$", line) for line in lines]
    assert list(dict.fromkeys(stage for stage, *_ in parts)) == [
        "reading the text",
        "checking the model",
        "training the tokenizer",
        "tokenising the train split",
        "tokenising the validation split",
        "drawing the first parameters",
    ]
    percents = {int(done) for _, *rest in parts for done in rest[:1]}
    assert percents <= {25, 50, 75, 100}
    assert percents


# --- sources -------------------------------------------------------------------------------------


def test_the_standard_library_is_found_in_order() -> None:
    inventory = sources.take_inventory([StdlibSource(kind="stdlib")], Path())
    names = [part.path.as_posix() for part in inventory.parts]
    assert len(names) > 300
    assert inventory.size > 5_000_000
    assert not any("site-packages" in name or "__pycache__" in name for name in names)
    train, validation = sources.split(inventory.parts, 0.05)
    assert 0.03 < sum(part.size for part in validation) / inventory.size < 0.06
    assert not {part.digest for part in train} & {part.digest for part in validation}


def test_files_are_sorted_and_duplicates_and_other_files_are_dropped(tmp_path: Path) -> None:
    for name, text in {
        "b/z.txt": "one",
        "a.md": "two",
        "b/a.py": "one",
        "c.exe": "no",
        "empty.txt": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    inventory = sources.take_inventory(text_source("."), tmp_path)
    assert texts_of(inventory.parts) == ["two", "one"]
    assert inventory.parts[1].path.name == "a.py"
    assert inventory.skipped.files[sources.SAME_TEXT] == 1


def test_jsonl_gives_one_document_a_line(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {number}", "id": number}) for number in range(10)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n\n")
    inventory = sources.take_inventory(text_source("x.jsonl"), tmp_path)
    pieces = list(sources.pieces(inventory.parts[0]))
    assert pieces == [(f"document {number}", True) for number in range(10)]
    train, validation = sources.split(inventory.parts, 0.2)
    parts = [text for part in (*train, *validation) for text, _ in sources.pieces(part)]
    assert parts == [text for text, _ in pieces]
    assert 1 <= len(list(sources.pieces(validation[0]))) <= 3


def test_a_single_file_is_cut_at_a_line_end(tmp_path: Path) -> None:
    text = "".join(f"line {number} é\n" for number in range(1000))
    (tmp_path / "one.txt").write_text(text)
    inventory = sources.take_inventory(text_source("one.txt"), tmp_path)
    (train,), (validation,) = (texts_of(part) for part in sources.split(inventory.parts, 0.1))
    assert train + validation == text
    assert train.endswith("\n")
    assert 0.08 < len(validation) / len(text) <= 0.1
    (tmp_path / "one.txt").write_text("no line end")
    inventory = sources.take_inventory(text_source("one.txt"), tmp_path)
    with pytest.raises(UsageError, match="cannot be split"):
        sources.split(inventory.parts, 0.1)


def test_both_splits_get_a_file_whatever_the_fraction(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", count=2)
    inventory = sources.take_inventory(text_source("texts"), tmp_path)
    for fraction in (0.001, 0.5):
        train, validation = sources.split(inventory.parts, fraction)
        assert (len(train), len(validation)) == (1, 1)


def test_a_sample_has_exactly_the_size_asked_for_up_to_a_line(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    inventory = sources.take_inventory(text_source("texts"), tmp_path)
    parts = sources.sample(inventory.parts, 5_000)
    size = sum(part.size for part in parts)
    assert 5_000 <= size < 5_050
    assert list(parts) == sorted(parts, key=lambda part: part.path)
    assert sources.sample(inventory.parts, 0) == inventory.parts
    assert texts_of(parts)[0].endswith("\n")


def test_long_files_are_read_in_pieces_without_loss(tmp_path: Path) -> None:
    text = "é☃" * 700_000  # 5 bytes a pair: pieces end inside characters
    (tmp_path / "long.txt").write_text(text + "\n" + text)
    inventory = sources.take_inventory(text_source("long.txt"), tmp_path)
    pieces = list(sources.pieces(inventory.parts[0]))
    assert "".join(piece for piece, _ in pieces) == text + "\n" + text
    assert [ends for _, ends in pieces] == [False] * (len(pieces) - 1) + [True]
    assert max(len(piece.encode()) for piece, _ in pieces) <= sources.PIECE_BYTES + 3


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("bad.txt", b"fine\nfine\nnot \xff fine\n", "bad.txt:3 is not UTF-8"),
        ("cut.txt", b"fine\ncut \xc3", "cut.txt:2 is not UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": 1}\n', 'bad.jsonl:2 has no field "text"'),
        ("bad.jsonl", b'{"text": "a"}\n{"text\n', "bad.jsonl:2 is not valid JSON"),
        ("bad.jsonl", b'\n["text"]\n', 'bad.jsonl:2 has no field "text"'),
        ("bad.jsonl", b'{"text": "\\ud800"}\n', "bad.jsonl:1 holds half a surrogate pair"),
        ("bad.pdf", b"x", "is none of .txt"),
        ("empty.txt", b"", "holds no text"),
    ],
)
def test_a_bad_source_gives_one_line_with_file_and_line(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError) as caught:
        sources.take_inventory(text_source(name), tmp_path)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist") as caught:
        sources.take_inventory(text_source("nowhere"), tmp_path)
    assert str(tmp_path / "nowhere") in caught.value.hint
    with pytest.raises(UsageError, match="holds no text"):
        sources.take_inventory(text_source("."), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("x")
    (tmp_path / "secret.txt").chmod(0)
    with pytest.raises(UsageError, match="Permission denied"):
        sources.take_inventory(text_source("secret.txt"), tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text\n" * 100)
    inventory = sources.take_inventory(text_source("a.txt"), tmp_path)
    (tmp_path / "a.txt").write_text("text\n")
    with pytest.raises(UsageError, match="changed"):
        list(sources.pieces(inventory.parts[0]))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UsageError, match="cannot read"):
        list(sources.pieces(inventory.parts[0]))

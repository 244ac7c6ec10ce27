"""A run file and the little text that it names."""

from __future__ import annotations

from pathlib import Path

from artel.coordinator import sources
from artel.protocol.run_config import StdlibSource, TextSource

RUN = """
[run]
name = "tiny"
seed = 3
[model]
type = "llama"
[model.config]
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 64
[tokenizer]
kind = "bpe"
vocab_size = 300
[data]
sources = [{ kind = "text", path = "texts" }]
seq_len = 16
shard_tokens = 1024
span_windows = 2
validation_fraction = 0.2
[optimizer]
batch_size = 2
warmup_steps = 1
[rounds]
inner_steps = 3
max_nodes = 4
"""


def write_texts(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        lines = [f"def function_{number}_{line}():\n    return {line}\n" for line in range(40)]
        (folder / f"file{number:02}.py").write_text("".join(lines))
    return folder


def write_run(tmp_path: Path, text: str = RUN) -> Path:
    if not (tmp_path / "texts").exists():
        write_texts(tmp_path / "texts")
    path = tmp_path / "RUN.toml"
    path.write_text(text)
    return path


def text_source(path: str) -> list[StdlibSource | TextSource]:
    return [TextSource(kind="text", path=path)]


def texts_of(parts: tuple[sources.Text, ...]) -> list[str]:
    return ["".join(text for text, _ in sources.pieces(part)) for part in parts]

"""The bill of materials of a release: a CycloneDX ML-BOM.

Spec: CycloneDX 1.6 (ECMA-424), JSON. Written out here because the library for it has no model cards
yet; the tests have the library check what is written against the specification's schema.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artel import __version__
from artel.model.evaluation import source_name
from artel.model.release import Release

SPEC = "1.6"
LIBRARIES = ("torch", "transformers", "safetensors", "tokenizers")


def of(made: Release, weights: Sequence[Path]) -> dict[str, Any]:
    """The document.

    :param weights: files of the release that hold them
    """
    loaded = made.loaded
    name = loaded.manifest.config.run.name
    serial = uuid.uuid5(uuid.NAMESPACE_URL, f"artel:{loaded.run}:{loaded.root}")
    libraries = [("artel-network", __version__)]
    libraries += [(each, importlib.metadata.version(each)) for each in LIBRARIES]
    data = [_data(made, split) for split in ("train", "validation")]
    tools = [_library(*each) for each in libraries]
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": name,
                "version": f"round-{loaded.round}",
                "description": loaded.manifest.config.run.description,
                "components": [_file(path) for path in weights],
                "modelCard": _model_card(made),
                "properties": _properties(made),
            }
        },
        "components": data + tools,
        "dependencies": [
            {"ref": "model", "dependsOn": [part["bom-ref"] for part in data + tools]},
        ],
    }


def _model_card(made: Release) -> dict[str, Any]:
    run = made.loaded.manifest.config
    metrics = [
        {"type": name, "value": f"{value:.6f}", "slice": one.text}
        for one in made.evaluations
        for name, value in (("loss", one.loss), ("perplexity", one.perplexity))
    ]
    return {
        "modelParameters": {
            "approach": {"type": "self-supervised"},
            "task": "text-generation",
            "architectureFamily": run.model.type,
            "datasets": [{"ref": "train"}, {"ref": "validation"}],
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": {
            "technicalLimitations": [
                "continues text; not taught to follow instructions, or to be harmless",
                f"never saw more than {run.data.seq_len} tokens at once",
            ],
        },
    }


def _properties(made: Release) -> list[dict[str, str]]:
    facts = {
        "run": made.loaded.run,
        "state": made.loaded.root,
        "round": str(made.loaded.round),
        "parameters": str(made.loaded.manifest.model.parameters),
        "ledger:size": str(made.size),
        "ledger:root": made.head,
    }
    return [{"name": f"artel:{name}", "value": value} for name, value in facts.items()]


def _data(made: Release, split: str) -> dict[str, Any]:
    """One split of the prepared data."""
    manifest = made.loaded.manifest
    facts = getattr(manifest.data, split)
    names = [source_name(source) for source in manifest.config.data.sources]
    counts = getattr(manifest.data, f"{split}_by_source") or ("",) * len(names)
    sources = [
        f"{name}: {count} tokens" if count != "" else name
        for name, count in zip(names, counts, strict=True)
    ]
    properties = {"tokens": str(facts.tokens), "index": facts.index, "root": facts.root}
    return {
        "type": "data",
        "bom-ref": split,
        "name": f"{manifest.config.run.name}: {split}",
        "data": [
            {
                "type": "dataset",
                "name": split,
                "contents": {
                    "properties": [
                        *({"name": "artel:source", "value": each} for each in sources),
                        *({"name": f"artel:{k}", "value": v} for k, v in properties.items()),
                    ]
                },
            }
        ],
    }


def _library(name: str, version: str) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}@{version}",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name}@{version}",
    }


def _file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "type": "file",
        "bom-ref": path.name,
        "name": path.name,
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }

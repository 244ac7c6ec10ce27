"""Which keys of a transformers configuration mean something to a type of model.

A configuration class takes any keyword and keeps it. Some keys are declared as its fields; others
are declared nowhere and read by the code of the model alone (``head_dim`` of many). What the code
reads is found in its source text, so that a misspelt key is told apart from one that has an effect.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ROPE_KEYS = frozenset({"rope_theta", "rope_scaling"})
"""Older names that transformers moves into rope_parameters."""


def declared(config_class: Any) -> dict[str, str]:
    """Keys that a configuration class declares, with the declared type as text."""
    known = {field.name: _type_name(field.type) for field in dataclasses.fields(config_class)}
    known.update(dict.fromkeys(getattr(config_class, "attribute_map", {}), ""))
    if "rope_parameters" in known:
        known.update(dict.fromkeys(_ROPE_KEYS, ""))
    return known


def undeclared(config_class: Any) -> set[str]:
    """Keys that the causal language model of a configuration class reads, but does not declare.

    Importing the model's code takes seconds; empty when transformers has none for the class.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        found = _reads(inspect.getfile(MODEL_FOR_CAUSAL_LM_MAPPING[config_class]))
    except (KeyError, OSError, TypeError):
        return set()
    keys = set().union(*found.values())
    # What the class has besides its fields are methods, properties and constants.
    return {key for key in keys if not key.startswith("_") and not hasattr(config_class, key)}


def used(module: torch.nn.Module) -> set[str]:
    """Keys that the parts which a model was built from read, under their declared names."""
    classes = {part for child in module.modules() for part in type(child).__mro__}
    keys: set[str] = set()
    for file in {inspect.getfile(c) for c in classes if c.__module__.startswith("transformers.")}:
        keys.update(*_of(_reads(file), {c.__name__ for c in classes}))
    names: dict[str, str] = getattr(module.config, "attribute_map", {})
    return {names.get(key, key) for key in keys}


def _of(found: dict[str, set[str]], classes: Collection[str]) -> list[set[str]]:
    return [keys for name, keys in found.items() if name in classes]


@cache
def _reads(file: str) -> dict[str, set[str]]:
    """Attributes of configurations that a file reads, by the class that does; "": outside any."""
    found: dict[str, set[str]] = {}
    for node in ast.parse(Path(file).read_bytes()).body:
        name = node.name if isinstance(node, ast.ClassDef) else ""
        found.setdefault(name, set()).update(filter(None, map(_attribute, ast.walk(node))))
    return found


def _attribute(node: ast.AST) -> str:
    """The attribute that an expression reads of a configuration, or an empty text.

    That is ``config.KEY`` or ``getattr(config, "KEY", …)``, where the name before the dot may also
    end with ``.config``.
    """
    match node:
        case ast.Attribute(value=owner, attr=key, ctx=ast.Load()):
            pass
        case ast.Call(
            func=ast.Name(id="getattr" | "hasattr"),
            args=[owner, ast.Constant(value=str(key)), *_],
        ):
            pass
        case _:
            return ""
    match owner:
        case ast.Name(id="config") | ast.Attribute(attr="config"):
            return key
    return ""


def _type_name(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")

"""Reading the TOML file of a run, with errors that a person can act on.

Whatever is wrong, the message is one line that names the file, the key, the value and the bound,
and the hint says what to write instead.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic import ValidationError as PydanticError
from pydantic.fields import FieldInfo

from artel.protocol.errors import UsageError, suggestion
from artel.protocol.run_config import RunConfig
from artel.protocol.schema import Conflict, Section

MAX_FILE_BYTES = 65_536
"""A run file is a page of text; anything longer is another file."""
_NEW = "artel run new DIR writes one"


def load_config(path: Path) -> RunConfig:
    """Read and check the run file at ``path``.

    :raises UsageError: naming the file, the key and the fix, whatever is wrong
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        hint = f"name the file in it: {path / 'RUN.toml'}" if path.is_dir() else _NEW
        raise UsageError(f"cannot read the run file {path}: {error.strerror}", hint) from None
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{path} is larger than {MAX_FILE_BYTES} bytes, too large for a run file")
    return parse_config(data, str(path))


def parse_config(data: bytes, name: str) -> RunConfig:
    """Check the bytes of a run file; ``name`` is what messages call it.

    :raises UsageError: as :func:`load_config`
    """
    try:
        # Some editors write a byte-order mark.
        table = tomllib.loads(data.decode("utf-8-sig"))
        # JSON has arrays where TOML has lists, so that strict tuples can be read from it.
        text = json.dumps(table, default=_no_date)
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start})") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(
            f"{name} is not valid TOML: {error}", "texts stand in quotes, tables in [brackets]"
        ) from None
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
    try:
        config = RunConfig.model_validate_json(text)
    except PydanticError as error:
        raise _explain(error, name) from None
    check_model_type(config.model.type, name)
    return config


def check_model_type(model_type: str, name: str) -> None:
    """Refuse a model type that transformers has no causal language model for.

    :raises UsageError: with the nearest known type
    """
    known = causal_model_types()
    if known and model_type not in known:
        raise UsageError(
            f"{name}: [model] type = {model_type!r} is no causal language model of transformers",
            suggestion(model_type, known) or "for example llama, gpt2 or qwen3",
        )


@cache
def causal_model_types() -> tuple[str, ...]:
    """Model types with a causal language model in the installed transformers, sorted.

    Read from the source text of its registry, since importing it costs three seconds and torch;
    empty when transformers is not installed or the registry has moved, and then building the model
    is what refuses an unknown type.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return ()
    source = Path(spec.submodule_search_locations[0]) / "models" / "auto" / "modeling_auto.py"
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError):
        return ()
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
            and isinstance(node.value, ast.Call)
            and node.value.args
        ):
            pairs = ast.literal_eval(node.value.args[0])
            return tuple(sorted(key for key, _ in pairs))
    return ()


def bounds(field: FieldInfo) -> str:
    """The bounds of a field in words, for example "1 to 32"; empty when there are none."""
    low = high = ""
    for rule in field.metadata:
        if getattr(rule, "ge", None) is not None:
            low = f"at least {_number(rule.ge)}"
        elif getattr(rule, "gt", None) is not None:
            low = f"above {_number(rule.gt)}"
        if getattr(rule, "le", None) is not None:
            high = f"at most {_number(rule.le)}"
        elif getattr(rule, "lt", None) is not None:
            high = f"below {_number(rule.lt)}"
        elif getattr(rule, "max_length", None) is not None and field.annotation is str:
            high = f"at most {rule.max_length} characters"
    if choices := get_args(field.annotation):
        texts = [f'"{choice}"' for choice in choices if isinstance(choice, str)]
        if len(texts) == len(choices):
            return "one of " + ", ".join(texts) if len(texts) > 1 else f"only {texts[0]}"
    return ", ".join(part for part in (low, high) if part)


def _number(value: float) -> str:
    if isinstance(value, int) and abs(value) >= 2**26 and (value & (value + 1)) == 0:
        return f"2^{value.bit_length()} - 1"
    if isinstance(value, int) and abs(value) >= 2**26 and (value & (value - 1)) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _no_date(value: object) -> object:
    raise ValueError(f"the value {value} is a date or a time; write a text in quotes")


_WHAT = {
    "int_type": "a whole number",
    "int_parsing_size": "a whole number of a sensible size",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text in quotes",
    "tuple_type": "a list in [brackets]",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_FORMS = {"^[0-9a-f]{64}$": "64 hex digits (0-9, a-f)"}
"""What stands for a pattern."""


def _explain(error: PydanticError, name: str) -> UsageError:
    """The first problem as one sentence with a fix; further ones are counted."""
    # A misspelt key often shows up as a missing one too: name the misspelling first.
    problems = sorted(error.errors(), key=lambda one: one["type"] == "missing")
    problem = problems[0]
    kind, value = problem["type"], problem.get("input")
    model, field, path = _resolve(problem["loc"])
    where = _written(path)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    context: Mapping[str, Any] = problem.get("ctx", {})
    about = (field.description or "").strip() if field else ""
    limits = bounds(field) if field else ""
    about_and_limits = f"{about} ({limits})" if limits else about
    if kind == "extra_forbidden":
        key = path[-1]
        known = list(model.model_fields)
        section = f"in {_section(path[:-1])}" if path[:-1] else "at the top level"
        hint = _elsewhere(key) or suggestion(key, known) or "known keys: " + ", ".join(known)
        return UsageError(f"{name}: unknown key {key} {section}{more}", hint)
    if kind == "missing":
        what = _section(path) if field and _is_section(field) else where
        return UsageError(f"{name}: {what} is missing{more}", about_and_limits)
    if kind == "value_error":
        cause = context.get("error")
        hint = cause.hint if isinstance(cause, Conflict) else ""
        return UsageError(f"{name}: {cause}{more}", hint)
    shown = _shown(value)
    if kind in ("literal_error", "union_tag_invalid"):
        allowed = get_args(field.annotation) if field else ()
        texts = [str(word) for word in allowed] if kind == "literal_error" else ["stdlib", "text"]
        chosen = value if isinstance(value, str) else str(context.get("tag", ""))
        hint = suggestion(chosen, texts)
        names = ", ".join(f'"{text}"' for text in texts)
        shown = shown if kind == "literal_error" else f'"{chosen}"'
        where = where if kind == "literal_error" else f"{where} kind"
        return UsageError(f"{name}: {where} = {shown} is none of {names}{more}", hint)
    if kind == "union_tag_not_found":
        hint = 'write kind = "stdlib", or kind = "text" with a path'
        return UsageError(f"{name}: a source in {where} has no kind{more}", hint)
    if kind in _WHAT:
        message = f"{name}: {where} = {shown} is not {_WHAT[kind]}{more}"
        return UsageError(message, about_and_limits)
    if kind == "string_pattern_mismatch" and context.get("pattern") in _FORMS:
        listed = _written(path[:-1]) if path[-1].isdigit() else where
        form = _FORMS[context["pattern"]]
        return UsageError(f"{name}: {listed}: {shown} is not {form}{more}", about)
    if kind in ("too_short", "too_long") and isinstance(value, list):
        few_or_many = "few" if kind == "too_short" else "many"
        return UsageError(f"{name}: {where} has too {few_or_many} entries: {len(value)}", about)
    limits = limits or problem["msg"][0].lower() + problem["msg"][1:]
    return UsageError(f"{name}: {where} = {shown} is out of bounds: {limits}{more}", about)


def _resolve(loc: Sequence[int | str]) -> tuple[type[BaseModel], FieldInfo | None, list[str]]:
    """Follow an error's location through the models: the innermost model, field and key path."""
    model: type[BaseModel] = RunConfig
    field: FieldInfo | None = None
    path: list[str] = []
    for part in loc:
        members = models_in(field.annotation) if field else []
        if isinstance(part, int):
            path.append(str(part + 1))
        elif tagged := [m for m in members if part in get_args(_kind_of(m))]:
            model, field = tagged[0], None  # the tag of a union, not a key
        else:
            if members:
                model = members[0]
            path.append(part)
            field = model.model_fields.get(part)
    return model, field, path


def models_in(annotation: Any) -> list[type[Section]]:
    """The tables that a field can hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def _kind_of(model: type[BaseModel]) -> Any:
    kind = model.model_fields.get("kind")
    return kind.annotation if kind else None


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _elsewhere(key: str) -> str:
    """The section that a key belongs to, when it was written into another one."""
    homes = [
        section
        for section, field in RunConfig.model_fields.items()
        for model in models_in(field.annotation)
        if key in model.model_fields
    ]
    return f"it belongs in [{homes[0]}]" if homes else ""


def _section(path: Sequence[str]) -> str:
    return f"[{'.'.join(path)}]"


def _written(path: Sequence[str]) -> str:
    """``["rounds", "total"]`` as a person wrote it: ``[rounds] total``."""
    if len(path) < 2:
        return _section(path) if path else "the file"
    return f"[{path[0]}] {'.'.join(path[1:])}"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."

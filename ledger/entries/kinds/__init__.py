"""The kinds of entries, one file each, and :data:`BODIES`, the registry that is made of them.

A file is named after its kind and holds the one class of that kind: its body, its rule, its summary
and its explanation, and where a process makes such entries also how they are made. A new kind is a
new file here; decoding, the fold, pages and commands find it by the registry.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from artel.ledger.entries.body import Body


def _bodies() -> dict[str, type[Body]]:
    found: dict[str, type[Body]] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        for item in vars(import_module(f"{__name__}.{name}")).values():
            if isinstance(item, type) and issubclass(item, Body) and vars(item).get("KIND") == name:
                found[name] = item
    return found


BODIES = _bodies()
"""Kind to the class of its bodies, by name."""

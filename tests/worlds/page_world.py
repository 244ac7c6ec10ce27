"""A page as a browser understands it: sections by id, tables by column, links, text."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from ledger_world import World

VOID = {"meta", "link", "input", "br", "rect", "line", "polygon", "polyline", "circle"}


def node_status(world: World, **more: Any) -> dict[str, Any]:
    """What a node of the world's first account may say of itself."""
    return {
        "node": world.members[0].peer_id,
        "account": world.owners[0].key,
        **{"name": world.name, "run": world.run, "term": 0, "coordinator_lost": False},
        **{"phase": "training", "reason": "all is well", "step": 3, "steps": 9, "loss": None},
        **{"round": 8, "state_round": 8, "rounds_total": 20, "tokens_per_second": 12.0},
        **{"vested": 100, "pending": 0, "awaiting": 0, "share": 0.25, "rejected": {}},
        **{"ledger_size": 85, "cosigned_size": 63, "final_size": 60, "reachable": True},
        **{"memory_daemon": 1 << 20, "memory_trainer": 0, "computing": 0.9},
        **{"up_by_kind": {"control": 7}, "down_by_kind": {"slice": 9}, "seconds": {"train": 2.0}},
        **{"served": {}, "fetched": {}, "waiting": "", "last_error": ""},
        **{"resting": "", "limits": "2 thread(s)", "settings": {"threads": 2}},
        **more,
    }


class Node:
    """An element; its content are elements and text."""

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag, self.attributes = tag, attributes
        self.content: list[Node | str] = []

    def all(self, *tags: str) -> Iterator[Node]:
        """Elements inside, in order; of these tags, when any are given."""
        for inner in self.content:
            if isinstance(inner, Node):
                if not tags or inner.tag in tags:
                    yield inner
                yield from inner.all(*tags)

    @property
    def text(self) -> str:
        """What is read, with single spaces."""
        parts = (inner if isinstance(inner, str) else f" {inner.text} " for inner in self.content)
        return " ".join("".join(parts).split()) if self.tag != "style" else ""

    @property
    def links(self) -> list[str]:
        """Where it leads."""
        return [found.attributes["href"] for found in self.all("a")]

    @property
    def ids(self) -> set[str]:
        return {found.attributes["id"] for found in self.all() if "id" in found.attributes}

    def section(self, id: str) -> Node:
        """The part of the page with this id."""
        return next(found for found in self.all() if found.attributes.get("id") == id)

    def rows(self) -> list[dict[str, Node]]:
        """Lines of its first table: cells by the names of their columns."""
        head, *lines = next(self.all("table")).all("tr")
        names = [cell.text for cell in head.all("th")]
        return [dict(zip(names, line.all("td"), strict=True)) for line in lines]

    def facts(self) -> dict[str, Node]:
        """Lines of its first table of names and values."""
        lines = next(self.all("table")).all("tr")
        return {next(line.all("th")).text: next(line.all("td")) for line in lines}

    def cards(self) -> dict[str, str]:
        """The large numbers, by what they are called."""
        values = (next(value.all("small")).text for value in self.all("dd"))
        names = (name.text for name in self.all("dt"))
        texts = (value.text for value in self.all("dd"))
        return {
            name: text.removesuffix(note).strip()
            for name, text, note in zip(names, texts, values, strict=True)
        }


def read(page: str) -> Node:
    """Parse a page; every element has to be closed where it was opened."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert len(parser.open) == 1, [node.tag for node in parser.open]
    return parser.open[0]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].content.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].content.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> inside of <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].content.append(data)


def runs_ours_alone(page: Node) -> bool:
    """Whether all scripts of a page are files of the server, and nothing stands in them."""
    scripts = list(page.all("script"))
    return all(each.attributes["src"].startswith("/static/") and not each.text for each in scripts)


def numbers(cell: Node) -> list[int]:
    """Whole numbers in a cell."""
    return [int(word.replace(",", "")) for word in cell.text.split() if word[0].isdigit()]

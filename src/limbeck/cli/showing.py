"""`limbeck list` and `limbeck show` as pages of text."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from limbeck.pipeline.catalog import Entry, PartPage

__all__ = ["listing", "part_page"]


def listing(recipes: Mapping[str, str], parts: "Iterable[Entry]") -> Table:
    """Draw the recipes and the parts, by slot: name and one sentence each."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_row(Text("recipes", style="bold"), "")
    for name, doc in recipes.items():
        table.add_row(Text(f"  {name}"), Text(doc))
    slot = ""
    for part in parts:
        if part.slot != slot:
            slot = part.slot
            table.add_row(Text(slot, style="bold"), "")
        table.add_row(Text(f"  {part.name}"), Text(part.doc))
    return table


def part_page(page: "PartPage") -> Group:
    """Draw a part: what it is, its paper, what it needs, and its options."""
    head = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    head.add_column(no_wrap=True)
    head.add_column()
    head.add_row(Text(f"{page.slot}.{page.name}", style="bold"), Text(page.doc))
    if page.paper:
        head.add_row("paper", Text(page.paper))
    if page.needs:
        head.add_row("needs", Text("; ".join(page.needs)))
    if not page.options:
        return Group(head, Text("no options"))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("option", "type", "default", "meaning"):
        table.add_column(heading, no_wrap=heading == "option")
    for option in page.options:
        table.add_row(*(Text(text) for text in (option.name, option.type, "(required)" if option.required else option.default, option.doc)))
    return Group(head, Text(""), table)

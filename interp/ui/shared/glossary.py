"""The words of the glossary, and links from a page's words to them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FILE = Path(__file__).parents[2] / "data" / "glossary.md"
TERM = re.compile(r"(?<!\*)\*{1,2}([^*]+)\*{1,2}(?!\*)")
"""A word that the glossary explains is written in bold or in italics."""


@cache
def sections() -> dict[str, str]:
    """The text of every section, by its title."""
    parts = re.split(r"^## (.*)\n", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {title: text.strip() for title, text in zip(parts[::2], parts[1::2], strict=True)}


def anchor(title: str) -> str:
    """The part of an address that leads to a section."""
    return title.lower().replace(" ", "-")


@cache
def words() -> dict[str, str]:
    """The words that are explained, as a sentence has them, and the title of the section of each.

    Of several words that share an ending, such as find, select and test rows, none is linked.
    """
    found: dict[str, str] = {}
    for title, text in sections().items():
        for shown in TERM.findall(text):
            some = shown.strip(":").split(", ")
            if len(some) == 1 or not any(" " in one for one in some):
                for one in some:
                    name = one[0].lower() + one[1:] if one[1:].islower() else one
                    found.setdefault(name, title)
    return found


def linked(text: str) -> str:
    """Markdown whose first use of each explained word is a link to the glossary.

    A word with a capital is left as it is: it may be the name of a page, such as Interventions.
    """
    for word, title in sorted(words().items(), key=lambda pair: -len(pair[0])):
        use = re.compile(rf"(?<![\w\[*`/-])(?P<used>{re.escape(word)}(?:s|es)?)(?![\w\]*`/-])")
        text = _outside_links(use, f"[\\g<used>](glossary#{anchor(title)})", text)
    return text


def _outside_links(use: re.Pattern[str], link: str, text: str) -> str:
    """Replace the first use that is not in a link already."""
    parts = re.split(r"(\[[^\]]*\]\([^)]*\))", text)
    for number in range(0, len(parts), 2):
        parts[number], count = use.subn(link, parts[number], count=1)
        if count:
            break
    return "".join(parts)

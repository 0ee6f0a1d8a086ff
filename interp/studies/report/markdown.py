"""Values as Markdown: numbers, and model text that is shown and never obeyed."""

from __future__ import annotations

import math
import re
import unicodedata
from numbers import Integral, Real
from typing import Any

from interp.core.statistics import Estimate

MISSING = "–"
SPACES = re.compile(r"^ +| +\Z| {2,}")
SPECIAL = re.compile(r"[\\`*\[\]~|$#]|(?<![^\W_])_|_(?![^\W_])")
MARKER = re.compile(r"^(\d{0,9})([-+.)=])(?=[-= ]|\Z)")
NAMED = {"\n": "↵", "\t": "⇥", "&": "&amp;", "<": "&lt;", ">": "&gt;"}
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


class Markdown(str):
    """Text that is Markdown already. Any other text is escaped before it enters a report."""

    __slots__ = ()


def escape(text: str, *, first: bool = True) -> str:
    """A model's text as Markdown that shows it on one line, character for character.

    Line breaks become ↵, tabs ⇥, spaces at an end or in a row ␣; other invisible characters are
    named (⟨U+202E⟩). Safe in a table cell, a heading and, where it may come `first`, a paragraph.
    """
    shown = SPACES.sub(lambda spaces: "␣" * len(spaces[0]), text)
    shown = SPECIAL.sub(r"\\\g<0>", shown)
    shown = MARKER.sub(r"\1\\\2", shown) if first else shown
    return "".join(NAMED.get(character) or _seen(character) for character in shown)


def number(value: Real | float) -> str:
    """A number as a report shows it: integers whole, three decimals, small ones with exponent."""
    if isinstance(value, Integral):
        return str(int(value))
    return MISSING if math.isnan(value) else _fixed(float(value), abs(float(value)))


def cell(value: object) -> str:
    """A table cell's plain text, not yet escaped.

    Numbers as `number`, an Estimate as mean [low, high], None and nan as –, truth as yes or no,
    a sequence joined by commas, anything else by `str`.
    """
    value = _unboxed(value)
    if _is_missing(value):
        return MISSING
    if isinstance(value, Estimate):
        ends = (value.mean, value.low, value.high)
        size = max((abs(end) for end in ends if math.isfinite(end)), default=0.0)
        mean, low, high = (MISSING if math.isnan(end) else _fixed(end, size) for end in ends)
        return mean if mean == MISSING else f"{mean} [{low}, {high}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Real):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value)
    return str(value)


def shown(value: object) -> str:
    """Any value as Markdown: Markdown as it is, numbers as `cell`, text escaped."""
    value = _unboxed(value)
    numeric = isinstance(value, Real | Estimate | Markdown) and not isinstance(value, bool)
    return cell(value) if numeric else escape(cell(value))


def code(text: str) -> Markdown:
    """Text in a code span."""
    return Markdown(f"`{text.replace('`', '')}`")


def block(text: str) -> Markdown:
    """A model's text in a code block, line by line; backticks in threes are left out."""
    return Markdown(f"```\n{text.replace('```', '')}\n```")


def _seen(character: str) -> str:
    hidden = unicodedata.category(character) in HIDDEN and character not in "\u200c\u200d"
    return f"⟨U+{ord(character):04X}⟩" if hidden else character


def _fixed(value: float, size: float) -> str:
    """`value` with the decimals that suit numbers as large as `size`."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if 0 < size < 0.001 or size >= 1e7:
        return f"{value:.1e}"
    decimals = 4 if 0 < size < 0.01 else 3 if size < 100 else 1 if size < 10_000 else 0
    return f"{round(value, decimals) + 0.0:z.{decimals}f}"


def _unboxed(value: Any) -> Any:
    """A number out of its array or tensor of no dimensions."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _is_missing(value: object) -> bool:
    import pandas

    if isinstance(value, Real):
        return math.isnan(value)
    return value is None or value is pandas.NA or value is pandas.NaT

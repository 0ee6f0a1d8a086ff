"""A study's report: one Markdown source, the HTML made from it, and its figures.

Only `Report.text` takes Markdown. Titles, captions, column names and cells are plain text and are
escaped, so that what a model wrote is shown and not obeyed.
"""

from __future__ import annotations

import base64
import html
import math
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from numbers import Integral, Real
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from markdown_it import MarkdownIt
from markdown_it.token import Token

from interp.core.errors import InterpError, unknown
from interp.core.files import write_atomically
from interp.core.statistics import Estimate
from interp.studies.report.page import PAGE, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

MISSING = "–"
MOST_POINTS = 4000
MOST_BYTES = 1_000_000
MIME = {"svg": "image/svg+xml", "png": "image/png"}
SPACES = re.compile(r"^ +| +\Z| {2,}")
SPECIAL = re.compile(r"[\\`*\[\]~|$#]|(?<![^\W_])_|_(?![^\W_])")
MARKER = re.compile(r"^(\d{0,9})([-+.)=])(?=[-= ]|\Z)")
NAMED = {"\n": "↵", "\t": "⇥", "&": "&amp;", "<": "&lt;", ">": "&gt;"}
DRAWN, LONG = re.compile(rb"<(?:path|use|text) [^>]+>"), re.compile(rb"(\d\.\d\d)\d+")
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


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


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A rendered figure: file contents, "svg" or "png", and width on the page in CSS pixels."""

    data: bytes
    suffix: str
    width: int


def render(figure: Figure, *, name: str = "figure") -> Picture:
    """A figure as SVG, or as PNG if it draws more than 4000 points; the same bytes every time.

    An SVG's text stays text, its coordinates keep two decimals; `name` salts its identifiers.
    """
    import matplotlib

    suffix = "png" if points(figure) > MOST_POINTS else "svg"
    unwanted = ("Date", "Creator") if suffix == "svg" else ("Software",)
    buffer = BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcParams.update({"svg.hashsalt": name, "svg.fonttype": "none"})
        matplotlib.rcParams["font.sans-serif"] = ["DejaVu Sans", "Verdana"]
        if suffix == "svg":  # the reader's fonts draw what ours cannot
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format=suffix, dpi=160, metadata=dict.fromkeys(unwanted))
    data = buffer.getvalue()
    if suffix == "svg":
        lines = re.sub(rb"\n +", b"\n", data)
        data = DRAWN.sub(lambda tag: LONG.sub(rb"\1", tag[0]), lines)
    return Picture(data=data, suffix=suffix, width=round(figure.get_figwidth() * 96))


def points(figure: Figure) -> int:
    """How many points a figure draws: line and marker points, corners of areas; images are 1."""
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D

    total = 0
    for artist in figure.findobj():
        if isinstance(artist, Line2D):
            total += np.size(artist.get_xdata())
        elif isinstance(artist, Collection):
            corners = sum(np.size(path.vertices) // 2 for path in artist.get_paths())
            total += max(corners, np.size(artist.get_offsets()) // 2)
        else:
            total += 1
    return total


class Report:
    """A report put together block by block, then saved as Markdown, HTML and figures."""

    def __init__(self, title: str) -> None:
        self.title = " ".join(title.split())
        self._blocks = [f"# {escape(self.title)}"]
        self._pictures: dict[str, Picture] = {}

    def section(self, title: str, level: int = 2) -> Self:
        """A heading; level 2 to 4.

        Raises:
            InterpError: no title, or no such level.
        """
        if level not in (2, 3, 4) or not title.strip():
            asked = f"section {title!r} at level {level}"
            raise InterpError(asked, "not a heading", "give a title, and level 2, 3 or 4")
        words = escape(" ".join(title.split()), first=False)
        self._blocks.append(f"{'#' * level} {words}")
        return self

    def text(self, markdown: str) -> Self:
        """A piece of Markdown of the author's own; model text in it goes through `escape`.

        Raises:
            InterpError: raw HTML, an image, or a code block left open: these would look different
                in the Markdown and in the HTML, or swallow what follows.
        """
        markdown = dedent(markdown).strip("\n").rstrip()
        end = "interp-end-of-text"
        tokens = MarkdownIt("commonmark").enable("table").parse(f"{markdown}\n\n{end}")
        for token in (inner for outer in tokens for inner in (outer, *(outer.children or ()))):
            if token.type in ("html_block", "html_inline"):
                raise InterpError("text", f"raw HTML: {token.content!r}", "escape() model text")
            if token.type == "image":
                raise InterpError("text", f"an image: {token.content!r}", "add it with .figure()")
        if tokens[-1].type != "paragraph_close" or tokens[-2].content != end or tokens[-1].level:
            raise InterpError("text", f"a block left open: {markdown[-60:]!r}", "close it")
        if markdown:
            self._blocks.append(markdown)
        return self

    def table(
        self,
        rows: DataFrame | Sequence[Mapping[str, Any]] | Sequence[Sequence[Any]],
        caption: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> Self:
        """A table, its cells shown by `cell`; columns of numbers are aligned right.

        Args:
            rows: a DataFrame, mappings with the same keys, or sequences of the same length. A
                DataFrame's index is shown if it has a name, or is of strings.
            caption: plain text above the table.
            columns: which columns and in what order; needed, as headings, for sequences.

        Raises:
            InterpError: rows of different lengths or keys, no such column, no columns at all.
        """
        headings, body = _grid(rows, columns)
        values = [[row[i] for row in body] for i in range(len(headings))]
        ruled = ["---:" if _is_numeric(column) else "---" for column in values]
        lines = [[escape(heading) for heading in headings], ruled]
        lines += [[_shown(value) for value in row] for row in body]
        self._caption(caption)
        self._blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return self

    def figure(self, figure: Figure, name: str, caption: str = "") -> Self:
        """A figure, rendered now (see `render`); the caption is also its alternative text.

        Raises:
            InterpError: the name is taken, or is not of letters, digits, - and _.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InterpError(f"figure {name!r}", "not a name", "use letters, digits, - and _")
        if name.lower() in (taken.lower() for taken in self._pictures):
            raise InterpError(f"figure {name!r}", "there is one already", "give another name")
        picture = self._pictures[name] = render(figure, name=name)
        words = escape(" ".join(caption.split()) or name)
        self._blocks.append(f"![{words}](figures/{name}.{picture.suffix})")
        self._caption(caption)
        return self

    def markdown(self) -> str:
        """The report as GitHub Markdown; figures are files beside it."""
        return "\n\n".join(self._blocks) + "\n"

    def html(self) -> str:
        """The report as one HTML page that needs no other file, made from `markdown`."""
        parser = MarkdownIt("commonmark", {"html": False}).enable("table")
        scroll = '<div class="scroll" tabindex="0"><table>\n'
        parser.add_render_rule("table_open", lambda *_: scroll)
        parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
        tokens = parser.parse(self.markdown())
        contents = _anchor_headings(tokens)
        tokens = _frame_figures(tokens, self._pictures)
        body = parser.renderer.render(tokens, parser.options, {})
        return PAGE.format(title=html.escape(self.title), style=STYLE, contents=contents, body=body)

    def save(self, directory: str | Path) -> Path:
        """Write report.md, report.html and figures/ into `directory`; the path of report.md.

        The same report gives the same bytes. Warns if all files together exceed a megabyte.

        Raises:
            InterpError: the directory cannot be written.
        """
        directory = Path(directory)
        drawn = self._pictures.items()
        files = {f"figures/{name}.{picture.suffix}": picture.data for name, picture in drawn}
        for name, text in (("report.md", self.markdown()), ("report.html", self.html())):
            files[name] = text.encode("utf-8", "backslashreplace")
        for name, data in files.items():
            write_atomically(directory / name, lambda path, data=data: path.write_bytes(data))
        for name, picture in drawn:
            for other in MIME.keys() - {picture.suffix}:
                (directory / f"figures/{name}.{other}").unlink(missing_ok=True)
        if (size := sum(map(len, files.values()))) > MOST_BYTES:
            largest = ", ".join(sorted(files, key=lambda name: -len(files[name]))[:4])
            warnings.warn(f"the report takes {size:,} bytes; largest: {largest}", stacklevel=2)
        return directory / "report.md"

    def _caption(self, caption: str | None) -> None:
        if caption and caption.strip():
            self._blocks.append(f"*{escape(' '.join(caption.split()))}*")


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
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def _unboxed(value: Any) -> Any:
    """A number out of its array or tensor of no dimensions."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _is_missing(value: object) -> bool:
    import pandas

    if isinstance(value, Real):
        return math.isnan(value)
    return value is None or value is pandas.NA or value is pandas.NaT


def _is_numeric(values: Sequence[object]) -> bool:
    """Whether there are numbers, and nothing else but missing ones."""
    there = [value for value in values if not _is_missing(value)]
    numbers = (isinstance(v, Real | Estimate) and not isinstance(v, bool) for v in there)
    return bool(there) and all(numbers)


def _shown(value: object) -> str:
    return cell(value) if _is_numeric([value]) else escape(cell(value))


def _grid(rows: Any, columns: Sequence[str] | None) -> tuple[list[str], list[list[Any]]]:
    """Headings and rows of a table, all of one length."""
    import pandas

    if isinstance(rows, pandas.DataFrame):
        index = rows.index
        if index.nlevels > 1 or index.name is not None or index.inferred_type == "string":
            rows = rows.reset_index()
        keys, rows = list(rows.columns), list(rows.itertuples(index=False, name=None))
    elif (rows := list(rows)) and isinstance(rows[0], Mapping):
        keys = list(rows[0])
        for i, row in enumerate(rows):
            if set(row) != set(keys):
                odd = sorted(map(str, set(row) ^ set(keys)))
                raise InterpError(f"table row {i}", f"keys differ in {odd}", "give all the same")
        rows = [[row[key] for key in keys] for row in rows]
    elif columns is None:
        raise InterpError("table", "rows without column names", "pass columns=")
    else:
        keys = [columns] if isinstance(columns, str) else list(columns)
    for i, row in enumerate(rows):
        if isinstance(row, str) or len(row) != len(keys):
            found = f"{row!r} for {len(keys)} columns"
            raise InterpError(f"table row {i}", found, "give every row one value a column")
    wanted = keys if columns is None else list(columns)
    if not wanted or len(set(wanted)) != len(wanted) or len(set(keys)) != len(keys):
        raise InterpError("table", f"columns {wanted}", "give at least one, each once")
    for name in wanted:
        if name not in keys:
            raise unknown("column", str(name), map(str, keys))
    places = [keys.index(name) for name in wanted]
    return [str(name) for name in wanted], [[_unboxed(row[i]) for i in places] for row in rows]


def _anchor_headings(tokens: list[Token]) -> str:
    """Give headings GitHub's anchors; the list items of the contents."""
    seen: dict[str, int] = {}
    items = []
    for opening, inline in zip(tokens, tokens[1:], strict=False):
        if opening.type != "heading_open":
            continue
        children = inline.children or ()
        words = "".join(c.content for c in children if c.type in ("text", "code_inline"))
        anchor = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        count = seen[anchor] = seen.get(anchor, -1) + 1
        anchor = f"{anchor}-{count}" if count else anchor
        opening.attrSet("id", anchor)
        if opening.tag in ("h2", "h3", "h4"):
            link = f'<a href="#{html.escape(anchor)}">{html.escape(words)}</a>'
            items.append(f'<li class="{opening.tag}">{link}</li>')
    return "\n".join(items)


def _frame_figures(tokens: list[Token], pictures: Mapping[str, Picture]) -> list[Token]:
    """Images embedded, each in a <figure> with its caption; captions of tables marked."""
    framed, i = [], 0
    while i < len(tokens):
        if tokens[i].type != "paragraph_open":
            framed.append(tokens[i])
            i += 1
            continue
        opening, inline, close = tokens[i : i + 3]
        i += 3
        children = inline.children or []
        if [child.type for child in children] == ["image"]:
            picture = pictures[Path(str(children[0].attrGet("src"))).stem]
            data = base64.b64encode(picture.data).decode()
            children[0].attrSet("src", f"data:{MIME[picture.suffix]};base64,{data}")
            children[0].attrSet("width", str(picture.width))
            opening.tag = close.tag = "figure"
            framed += [opening, inline]
            if _is_caption(tokens[i : i + 3]):
                tokens[i].tag = tokens[i + 2].tag = "figcaption"
                framed += tokens[i : i + 3]
                i += 3
            framed.append(close)
        else:
            if _is_caption([opening, inline, close]):
                opening.attrSet("class", "caption")
            framed += [opening, inline, close]
    return framed


def _is_caption(tokens: Sequence[Token]) -> bool:
    inside = (tokens[1].children or ()) if tokens and tokens[0].type == "paragraph_open" else ()
    return [child.type for child in inside] == ["em_open", "text", "em_close"]

"""A study's report: a Markdown template filled with its results, the HTML page, and its figures.

The template holds the prose and names numbers, tables and figures. Every value it names is shown by
`interp.studies.report.markdown.shown`, so text that a model wrote is escaped and never obeyed.
"""

from __future__ import annotations

import base64
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.anchors import anchors_plugin

from interp.core.errors import InterpError
from interp.core.files import versions, write_atomically
from interp.core.schema import read_text
from interp.models.registry import taught
from interp.plots.style import visible
from interp.studies import formatting
from interp.studies.report.markdown import Markdown, block, code, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interp.studies.study import Study

HERE = Path(__file__).parent
MOST_BYTES = 1_000_000
MOST_POINTS = 4000
DPI = 160
"""Pixels of a PNG in an inch of the figure."""
MIME = {"svg": "image/svg+xml", "png": "image/png"}
DRAWN, LONG = re.compile(rb"<(?:path|use|text) [^>]+>"), re.compile(rb"(\d\.\d\d)\d+")
END = "interp-end-of-report"
CELL = re.compile(r"(?<!\\)\|")
EMPHASISED = r"<em>(?:(?!</?em>|</p>).)*</em>"
FIGURE = re.compile(
    r'<p><img src="figures/(?P<name>[\w-]+)\.\w+" alt="(?P<alt>[^"]*)" /></p>\n'
    rf"(?:<p>(?P<caption>{EMPHASISED})</p>\n)?",
    re.DOTALL,
)
CAPTION = re.compile(rf"<p>(?={EMPHASISED}</p>)", re.DOTALL)
"""Paragraphs emphasised from their first to their last word are captions."""

FILTERS: dict[str, Callable[..., object]] = {
    "average": np.mean,
    "block": block,
    "code": code,
    "each": lambda rows, words, between=", ": between.join(_each(rows, words)),
    "exp": math.exp,
    "fixed": lambda value, decimals: Markdown(f"{value:z.{decimals}f}"),
    "g": lambda value: f"{value:g}",
    "percent": lambda value, decimals=0: Markdown(f"{value:.{decimals}%}"),
    "quoted": lambda tokens: ", ".join(repr(token)[1:-1] for token in tokens),
    "signed": lambda value, decimals: Markdown(f"{value:+z.{decimals}f}"),
    "visible": visible,
    "written": lambda tokens: " ".join(map(visible, tokens)),
}
FILTERS |= {
    name: getattr(formatting, name)
    for name in ("as_strong", "change", "estimate", "interval", "listed", "maybe", "null", "pooled",
                 "random_range", "retained", "selected", "spread")
}  # fmt: skip
"""What a template can do with a value, besides the filters of jinja2."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A rendered figure: file contents, "svg" or "png", and width on the page in CSS pixels."""

    data: bytes
    suffix: str
    width: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report as Markdown, and the figures it names; `save` writes both, and the HTML page."""

    text: str
    pictures: dict[str, Picture] = field(default_factory=dict)

    def markdown(self) -> str:
        """The report as GitHub Markdown; figures are files beside it."""
        return self.text

    def html(self) -> str:
        """The report as one HTML page that needs no other file, made from `markdown`."""
        parser = _parser().use(anchors_plugin, max_level=4)
        scroll = '<div class="scroll" tabindex="0"><table>\n'
        parser.add_render_rule("table_open", lambda *_: scroll)
        parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
        tokens = parser.parse(self.text)
        title, *contents = _headings(tokens)
        body = parser.renderer.render(tokens, parser.options, {})
        body = CAPTION.sub('<p class="caption">', FIGURE.sub(self._framed, body))
        pages = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
        page = pages.get_template("page.html.j2")
        return page.render(title=title["words"], contents=contents, body=body)

    def _framed(self, found: re.Match[str]) -> str:
        """A figure embedded in the page, with its caption."""
        picture = self.pictures[found["name"]]
        data = f"data:{MIME[picture.suffix]};base64,{base64.b64encode(picture.data).decode()}"
        caption = found["caption"] or ""
        words = re.sub("<[^>]+>", "", caption) or found["alt"]
        image = f'<img src="{data}" alt="{words}" width="{picture.width}" />'
        below = caption and f"<figcaption>{caption}</figcaption>\n"
        return f"<figure>{image}{below}</figure>\n"

    @classmethod
    def load(cls, directory: str | Path) -> Report:
        """The report that `save` wrote into `directory`.

        Raises:
            InterpError: there is none that can be read.
        """
        directory, pictures = Path(directory), {}
        text = read_text(directory / "report.md", f"the report in {directory}")
        for path in sorted(directory.glob("figures/*.*")):
            suffix, data = path.suffix[1:], path.read_bytes()
            if suffix == "png":
                width = int.from_bytes(data[16:20], "big") / DPI  # of the header
            else:
                found = re.search(rb'<svg [^>]*width="([\d.]+)pt"', data)
                width = float(found[1]) / 72 if found else 7
            pictures[path.stem] = Picture(data=data, suffix=suffix, width=round(width * 96))
        return cls(text=text, pictures=pictures)

    def save(self, directory: str | Path) -> Path:
        """Write report.md, report.html and figures/ into `directory`; the path of report.md.

        The same report gives the same bytes. Warns if all files together exceed a megabyte.

        Raises:
            InterpError: the directory cannot be written.
        """
        directory = Path(directory)
        drawn = self.pictures.items()
        files = {f"figures/{name}.{picture.suffix}": picture.data for name, picture in drawn}
        for name, text in (("report.md", self.text), ("report.html", self.html())):
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
        figure.savefig(buffer, format=suffix, dpi=DPI, metadata=dict.fromkeys(unwanted))
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


def study_report(template: Path, study: Study[Any], figures: ModuleType, **names: Any) -> Report:
    """The report of a study, from its template.

    The template can name `study`, every step's result (`results`, and each under its own name),
    `taught` (what an organism was trained to do), `run` (for the partial run.md.j2), what `names`
    holds, and what the module `figures` holds: `figures.<function>(...)` draws with a function that
    takes the results first.

    Raises:
        InterpError: the template names what is not there, or is not valid; see `fill`.
    """
    longest = sorted(study.seconds.items(), key=lambda pair: -pair[1])[:5]
    run = {
        "settings": _listed(asdict(study.settings)),
        "minutes": sum(study.seconds.values()) / 60,
        "longest": ", ".join(f"{name} {seconds:z.0f} s" for name, seconds in longest),
        "versions": _listed(versions()),
        "made": study.made,
    }
    pictures: dict[str, Picture] = {}

    def figure(name: str, *given: str | int) -> Markdown:
        full = "_".join(map(str, [name, *given])).replace(" ", "_")
        if not re.fullmatch(r"[\w-]+", full):
            raise InterpError(f"figure {full!r}", "not a name", "use letters, digits, - and _")
        pictures[full] = render(getattr(figures, name)(study.results, *given), name=full)
        return Markdown(f"![{full}](figures/{full}.{pictures[full].suffix})")

    known = {
        **vars(figures),
        **study.results,
        "results": study.results,
        "study": study,
        "taught": taught(study.model),
        "run": run,
        "figures": SimpleNamespace(**{each: partial(figure, each) for each in vars(figures)}),
        "zip": zip,
        **names,
    }
    return Report(text=fill(template, known), pictures=pictures)


def fill(template: Path, names: Mapping[str, Any]) -> str:
    """A Markdown template with its names filled in; partials are beside it or in this package.

    Raises:
        InterpError: a name or a step's result is missing, the template is not valid, there is no
            title, a table's rows differ in length, or there is raw HTML, an image that is not a
            figure, or an open code block (these would look different in the Markdown and in the
            HTML, or swallow what follows).
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= FILTERS
    asked = f"the report of {template.parent.parent.name}"
    try:
        text = environment.get_template(template.name).render(names)
    except (TemplateError, KeyError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InterpError(asked, found, "run the missing step, or correct the template") from error
    tokens = _parser(html=True).parse(f"{text}\n\n{END}")
    if tokens[0].tag != "h1":
        raise InterpError(asked, f"{text[:60]!r} at its head", "begin with a title: # and words")
    lines = text.splitlines()
    for begin, end in (token.map for token in tokens if token.type == "table_open" and token.map):
        if len({len(CELL.findall(line)) for line in lines[begin:end]}) > 1:
            raise InterpError(asked, f"rows of unlike length: {lines[begin]}", "correct the table")
    for token in (inner for outer in tokens for inner in (outer, *(outer.children or ()))):
        if token.type in ("html_block", "html_inline"):
            raise InterpError(asked, f"raw HTML: {token.content!r}", "write Markdown")
        if token.type == "image" and not str(token.attrGet("src")).startswith("figures/"):
            raise InterpError(asked, f"an image: {token.content!r}", "add it as a figure")
    if tokens[-1].type != "paragraph_close" or tokens[-2].content != END or tokens[-1].level:
        raise InterpError(asked, f"a block left open: {text[-60:]!r}", "close it")
    return text


def _parser(*, html: bool = False) -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": html}).enable("table")


def _each(rows: Mapping[Any, Any] | Iterable[Any], words: str) -> Iterable[str]:
    """A format filled with every row: a mapping's items by place, mappings by name, values."""
    for row in rows.items() if isinstance(rows, Mapping) else rows:
        named = row if isinstance(row, Mapping) else {}
        yield words.format(*([row] if isinstance(row, str) else row), **named)


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _headings(tokens: list[Token]) -> list[dict[str, str]]:
    """Level, anchor and words of every heading."""
    return [
        {
            "level": opening.tag,
            "anchor": str(opening.attrGet("id")),
            "words": "".join(child.content for child in inline.children or ()),
        }
        for opening, inline in zip(tokens, tokens[1:], strict=False)
        if opening.type == "heading_open"
    ]

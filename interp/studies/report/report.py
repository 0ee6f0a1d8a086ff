"""A study's report: a Markdown template filled with its results, the HTML page, and its figures.

The template holds the prose and names numbers, tables and figures. Every value it names is shown by
`interp.studies.report.markdown.shown`, so text that a model wrote is escaped and never obeyed.
"""

from __future__ import annotations

import base64
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.anchors import anchors_plugin

from interp.core.errors import InterpError
from interp.core.files import versions, write_atomically
from interp.plots.style import visible
from interp.studies import formatting
from interp.studies.report.markdown import Markdown, block, code, shown
from interp.studies.report.pictures import MIME, Picture, render

if TYPE_CHECKING:
    from interp.studies.study import Study

HERE = Path(__file__).parent
MOST_BYTES = 1_000_000
END = "interp-end-of-report"
CELL = re.compile(r"(?<!\\)\|")
FILTERS: dict[str, Callable[..., object]] = {
    "average": np.mean,
    "block": block,
    "code": code,
    "each": lambda rows, words, between=", ": between.join(_each(rows, words)),
    "exp": math.exp,
    "fixed": lambda value, decimals: Markdown(f"{value:.{decimals}f}"),
    "g": lambda value: f"{value:g}",
    "percent": lambda value, decimals=0: Markdown(f"{value:.{decimals}%}"),
    "quoted": lambda tokens: ", ".join(repr(token)[1:-1] for token in tokens),
    "signed": lambda value, decimals: Markdown(f"{value:+.{decimals}f}"),
    "visible": visible,
    "written": lambda tokens: " ".join(map(visible, tokens)),
}
FILTERS |= {
    name: getattr(formatting, name)
    for name in ("as_strong", "change", "estimate", "interval", "listed", "null", "pooled",
                 "retained", "selected", "spread")
}  # fmt: skip
"""What a template can do with a value, besides the filters of jinja2."""


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
        body = parser.renderer.render(_frame_figures(tokens, self.pictures), parser.options, {})
        pages = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
        page = pages.get_template("page.html.j2")
        return page.render(title=title["words"], contents=contents, body=body)

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


def study_report(template: Path, study: Study[Any], figures: ModuleType, **names: Any) -> Report:
    """The report of a study, from its template.

    The template can name `study`, every step's result (`results`, and each under its own name),
    `figures.<function>(...)` of a module whose functions take the results first, `run` (for the
    partial run.md.j2), and what `names` holds.

    Raises:
        InterpError: the template names what is not there, or is not valid; see `fill`.
    """
    longest = sorted(study.seconds.items(), key=lambda pair: -pair[1])[:5]
    run = {
        "settings": _listed(asdict(study.settings)),
        "minutes": sum(study.seconds.values()) / 60,
        "longest": ", ".join(f"{name} {seconds:.0f} s" for name, seconds in longest),
        "versions": _listed(versions()),
    }
    drawn = _Figures(figures, study.results)
    known = {
        **study.results,
        "results": study.results,
        "study": study,
        "run": run,
        "figures": drawn,
        "zip": zip,
        **names,
    }
    return Report(text=fill(template, known), pictures=drawn.pictures)


class _Figures:
    """Functions that draw, by name: called in a template, they add a picture and show it."""

    def __init__(self, module: ModuleType, results: Mapping[str, Any]) -> None:
        self.module, self.results = module, results
        self.pictures: dict[str, Picture] = {}

    def __getattr__(self, name: str) -> Callable[..., Markdown]:
        draw = getattr(self.module, name)

        def figure(*given: str) -> Markdown:
            full = "_".join([name, *given]).replace(" ", "_")
            if not re.fullmatch(r"[\w-]+", full):
                raise InterpError(f"figure {full!r}", "not a name", "use letters, digits, - and _")
            made = self.pictures[full] = render(draw(self.results, *given), name=full)
            return Markdown(f"![{full}](figures/{full}.{made.suffix})")

        return figure


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
            if _is_caption(caption := tokens[i : i + 3]):
                children[0].children = caption[1].children
                caption[0].tag = caption[2].tag = "figcaption"
                framed += caption
                i += 3
            framed.append(close)
        else:
            if _is_caption([opening, inline, close]):
                opening.attrSet("class", "caption")
            framed += [opening, inline, close]
    return framed


def _is_caption(tokens: Sequence[Token]) -> bool:
    """Whether a paragraph is emphasised from its first to its last word."""
    inside = (tokens[1].children or ()) if tokens and tokens[0].type == "paragraph_open" else ()
    types = [child.type for child in inside]
    return types[:1] == ["em_open"] and types[-1:] == ["em_close"] and types.count("em_open") == 1

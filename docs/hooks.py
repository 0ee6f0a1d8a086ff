"""Writes the reference pages (every public name) and the table of families of the site."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent


def imported(package: griffe.Module) -> dict[str, str]:
    """Names a package's `__init__.pyi` makes public, and where each is defined."""
    return {name: path for name, path in package.imports.items() if path.startswith("interp.")}


def returned(path: str, whole: griffe.Module) -> Iterator[str]:
    """Full names of the package's own classes in a function's return annotation."""
    member = whole[path.removeprefix("interp.")]
    returns = member.returns if member.is_function else None
    for part in returns.iterate(flat=True) if isinstance(returns, griffe.Expr) else ():
        if isinstance(part, griffe.ExprName) and part.canonical_path.startswith("interp."):
            with suppress(KeyError):
                found = whole[part.canonical_path.removeprefix("interp.")]
                if found.is_class:
                    yield found.canonical_path


SITES = (
    "resid_pre q k v pattern z attn_out resid_mid pre pre_linear post router expert_out mlp_out "
    "resid_post".split()
)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables that are made from files: of families, and of `tests.soak`."""
    pages = {"how-it-works/families.md": families, "how-it-works/robustness.md": robustness}
    make = pages.get(page.file.src_uri, dict)
    for place, text in make().items():
        markdown = markdown.replace(f"[{place}]", text)
    return markdown


def families() -> dict[str, str]:
    """The table of families that ships, and why sites are absent."""
    rows = json.loads((ROOT / "interp/data/families.json").read_text())["families"]
    table = [f"| family | runs | {' | '.join(SITES)} |", f"|---|---|{'---|' * len(SITES)}"]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        refused = row["runs"] == "refused"
        marks = ["." if refused or site in row["missing"] else "+" for site in SITES]
        table.append(f"| {row['name']} | {row['runs']} | {' | '.join(marks)} |")
        for site, why in row["missing"].items():
            text = f"{site}: {why}" if site else why
            reasons.setdefault(text, []).append(row["name"])
    listed = [f"- {text} ({', '.join(names)})" for text, names in reasons.items()]
    return {"the table": "\n".join(table), "the reasons": "\n".join(listed)}


def robustness() -> dict[str, str]:
    """The tables of `tests.soak`."""
    kills, cases, visitors = (
        json.loads((ROOT / f"docs/results/soak_{name}.json").read_text())
        for name in ("kills", "differential", "visitors")
    )
    names = ("kills", "computing", "writing", "kept", "lost", "damaged", "leftovers")
    words = "killed|kills|computing|writing|parts kept|lost|damaged|left over".split("|")
    table = [f"| {' | '.join((*words, 'runs', 'equal'))} |", f"|{'---|' * 10}"]
    total = {name: sum(row[name] for row in kills.values()) for name in (*names, "runs", "equal")}
    for kind, row in {**kills, "**all**": total}.items():
        figures = (row[name] for name in (*names, "runs", "equal"))
        table.append(f"| {kind} | {' | '.join(map(str, figures))} |")
    errors = ["| measurement | type | cases | families | largest error |", f"|{'---|' * 5}"]
    for measurement, types in cases["errors"].items():
        for dtype, rows in sorted(types.items()):
            n = sum(row["cases"] for row in rows.values())
            worst = max(row["largest error"] for row in rows.values())
            errors.append(f"| {measurement} | {dtype} | {n} | {len(rows)} | {worst:.0e} |")
    names = ("minutes", "visitors", "visits", "switches", "failed", "mixed", "absent")
    visits = ["| " + " | ".join((*names, "memory, MB", "slope, MB a minute")) + " |"]
    visits.append(f"|{'---|' * (len(names) + 2)}")
    for row in visitors:
        held = ", ".join(map(str, (*row["each minute"], row["last"])))
        figures = [f"{row[name]:zg}" for name in names]
        slope = f"{row['slope']:z.1f} ± {row['error']:z.1f}"
        visits.append(f"| {' | '.join([*figures, held, slope])} |")
    tables = {"the kills": table, "the cases": errors, "the visitors": visits}
    return {name: "\n".join(lines) for name, lines in tables.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each package: its purpose, every public name, then what these return."""
    whole = griffe.load("interp", search_paths=[str(ROOT)])
    assert isinstance(whole, griffe.Module)
    top = set(imported(whole).values())
    packages = [stub.parent.name for stub in sorted(ROOT.glob("interp/*/__init__.pyi"))]
    public = {name: imported(whole[name]) for name in packages}
    shown = {path for names in public.values() for path in names.values()}
    for package, names in public.items():
        lines = [f"# interp.{package}", whole[package].docstring.value]
        for name, path in names.items():
            alias = f"interp.{package}.{name}"
            heading = f"interp.{name}" if path in top else alias
            lines.append(f'::: {alias}\n    options:\n      heading: "{heading}"')
        results = [result for path in names.values() for result in returned(path, whole)]
        for result in dict.fromkeys(results):
            lines += [f"::: {result}"] if result not in shown else []
            shown.add(result)
        page = File.generated(config, f"reference/{package}.md", content="\n\n".join(lines))
        files.append(page)
    return files

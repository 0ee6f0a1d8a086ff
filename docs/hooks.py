"""Writes the reference pages (every public name) and the tables of the site that files hold."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

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
    """Fill in the tables that are made from files: of times, families, kills and random cases."""
    pages = {
        "how-it-works/benchmarks.md": benchmarks,
        "how-it-works/families.md": families,
        "how-it-works/robustness.md": robustness,
    }
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


def benchmarks() -> dict[str, str]:
    """The tables of `python -m benchmarks`."""
    sweeps, circuits, growth, texts = (
        json.loads((ROOT / f"docs/results/bench_{name}.json").read_text())
        for name in ("patching", "circuits", "growth", "generation")
    )
    rows = []
    for case in sweeps["cases"].values():
        ours = case["ours"]
        label = f"{case['what']}: {case['cells']:,} cells"
        floors = f"{case['floor_ratio']:z.2f} floors"
        rows.append([label, "**this package**", _seconds(ours), floors, _memory(ours), ""])
        for name, peer in case["peers"].items():
            off = f"{peer['max_abs_diff']:.0e}"
            ratio = f"{peer['ratio']:z.1f} times"
            rows.append(["", _versioned(name, peer), _seconds(peer), ratio, _memory(peer), off])
    found = {"the sweeps": _table("sweep|by|seconds|ratio|memory|difference", rows)}
    beside, rows = circuits["beside"], []
    peers = {f"EAP-IG: {name}": row for name, row in beside["EAP-IG"].items()}
    peers["TransformerLens, pair by pair"] = beside["TransformerLens"]
    for name, ours in circuits["ours"].items():
        rows.append([name, "**this package**", _seconds(ours), "", _memory(ours), ""])
        for peer, row in peers.items():
            if isinstance(row, dict) and row.get("ours") == name:
                ratio, off = f"{row['ratio']:z.1f} times", row.get("expected")
                off = f"{off['max_rel_diff']:.0e}" if off else ""
                rows.append(["", peer, _seconds(row), ratio, _memory(row), off])
    found["the circuits"] = _table("what|by|seconds|ratio|memory|difference", rows)
    acdc = circuits["ACDC"]
    rows = [["edge by edge", _seconds(acdc["loop"]), f"{acdc['loop']['forwards']:,}", ""]]
    rows += [
        [name, _seconds(acdc[name]), f"{acdc[name]['forwards']:.0f}", f"{acdc[name]['ratio']:.0f}"]
        for name in ("blind", "guided by EAP")
    ]
    found["the searches"] = _table("ACDC|seconds|forward passes|times fewer", rows)
    rows = [
        [f"sweep ({name})", f"{row['share']:z.2f}", f"{row['over_floor']:z.2f}"]
        for name, row in growth["products"].items()
    ]
    found["the products"] = _table("case|share in products|products over the floor", rows)
    rows = [
        [f"all heads into {name}, 16 IOI pairs", _seconds(row), f"{row['floor_ratio']:z.2f} floors"]
        for name, row in growth["paths"].items()
    ]
    rows += [
        [f"the stream of every layer, {name}", _seconds(row), f"{row['ratio']:z.2f} plain passes"]
        for name, row in growth["capture"].items()
        if name != "plain"
    ]
    found["the shares"] = _table("default model|seconds|ratio", rows)
    rows = [
        [
            name,
            ", ".join(map(str, row["sizes"])),
            ", ".join(_seconds(one) for one in row["rows"]),
            f"{row['exponent']:z.2f}",
            f"{row['floor_exponent']:z.2f}",
        ]
        for name, row in growth["growth"].items()
    ]
    found["the growth"] = _table("size|values|seconds|exponent|of the floor", rows)
    rows = [
        [name, _seconds(row), f"{row['ratio']:z.2f}", f"{row['tokens']:,}", str(row["fired"])]
        for name, row in texts.items()
        if isinstance(row, dict) and "seconds" in row
    ]
    found["the texts"] = _table(f"{texts['n']} texts|seconds|ratio|tokens|fired", rows)
    return found


def _seconds(row: dict[str, Any]) -> str:
    return f"{row['seconds']:z.2f} s" if row["seconds"] < 10 else f"{row['seconds']:.0f} s"


def _memory(row: dict[str, Any]) -> str:
    return f"{row['peak_mb']:,.0f} MB"


def _versioned(name: str, peer: dict[str, Any]) -> str:
    package = name.partition("-")[0] if name.startswith(("nnsight", "pyvene")) else name
    version = peer["versions"].get(package)
    return f"{name} {version}" if version else name


def _table(header: str, rows: list[list[str]]) -> str:
    names = header.split("|")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


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

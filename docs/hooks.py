"""Writes the reference pages when the site is built: every public name, and what it returns."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

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

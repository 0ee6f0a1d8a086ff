"""The house rules: imports run one way, doors are thin, nothing outgrows its room."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

from importlinter.cli import lint_imports

import interp
from tests import ROOT

HEAVY = {"torch", "numpy", "transformers", "transformer_lens", "plotly"}


@cache
def tree(path: Path) -> ast.Module:
    """A file, parsed."""
    return ast.parse(path.read_text())


@cache
def modules() -> dict[str, Path]:
    """Module name below interp -> file."""
    found = {}
    for path in sorted((ROOT / "interp").rglob("*.py")):
        parts = path.relative_to(ROOT / "interp").with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules a file imports, type-checking blocks left out."""
    hidden = {
        id(inner)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree(path)):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def test_imports_keep_their_contracts():
    """The layers, no circles, and who may know TransformerLens and Streamlit: pyproject.toml."""
    assert lint_imports(no_cache=True) == 0


def test_packages_say_what_they_are_for():
    """Every package has a purpose in one line, and its public names exist once and load."""
    seen = {}
    for path in sorted((ROOT / "interp").rglob("__init__.py")):
        first = ast.get_docstring(tree(path))
        assert first, path
        assert first.splitlines()[0].endswith("."), path
        if path.with_suffix(".pyi").exists() and path.parent != ROOT / "interp":
            name = ".".join(path.parent.relative_to(ROOT).parts)
            package = importlib.import_module(name)
            modules = {inner.stem for inner in path.parent.iterdir()}
            assert not modules & {*package.__all__}, "a module hides the name it is named like"
            for public in package.__all__:
                assert getattr(package, public) is not None, public
                assert seen.setdefault(public, name) == name, f"{public} is in two packages"
    top = {name for name in interp.__all__ if not hasattr(getattr(interp, name), "__path__")}
    assert len(top) <= 34
    assert top <= {*seen}
    assert all(getattr(interp, name) is not None for name in top)


def test_no_type_has_two_meanings():
    """The name of a class or type alias is defined once in the whole package."""
    seen: dict[str, Path] = {}
    for path in modules().values():
        for node in tree(path).body:
            names = {node.name} if isinstance(node, ast.ClassDef) else set()
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = {one.id for one in targets if isinstance(one, ast.Name)}
            for name in names:
                if name[0].isupper() and not name.isupper() and len(name) > 1:
                    assert seen.setdefault(name, path) == path, f"{name}: {seen[name]} and {path}"


def test_doors_import_nothing_heavy():
    doors = [ROOT / "app.py", *(ROOT / "interp" / "ui").rglob("*.py"), ROOT / "interp/cli/main.py"]
    for path in doors:
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & HEAVY, f"{path} imports {roots & HEAVY}"


def test_sizes():
    lines = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: count for name, count in lines.items() if count > 500} == {}


def test_public_functions_say_what_they_do():
    silent, bare = [], []
    for name, path in modules().items():
        for node in tree(path).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            if not node.name.startswith("_") and not ast.get_docstring(node):
                silent.append(f"{name}.{node.name}")
            if isinstance(node, ast.FunctionDef):
                every = [*node.args.args, *node.args.kwonlyargs]
                if not (node.returns and all(one.annotation for one in every)):
                    bare.append(f"{name}.{node.name}")
    assert silent == []
    assert bare == []


def test_importing_is_quick_and_changes_nothing():
    script = (
        "import sys, interp; from interp.cli.main import app; "
        f"heavy = {sorted(HEAVY)!r}; print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_what_is_imported_is_declared_and_pinned():
    """`tracr.py` runs in an environment of its own, as it says."""

    def names(lines):
        return {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in lines}

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    declared = names([*project["dependencies"], *(line for extra in extras for line in extra)])
    pinned = names((ROOT / "constraints.txt").read_text().splitlines())
    paths = [ROOT / "app.py"]
    for folder in ("interp", "benchmarks", "training", "experiments", "tests"):
        paths += (path for path in (ROOT / folder).rglob("*.py") if path.name != "tracr.py")
    known, ours = packages_distributions(), {path.stem for path in paths}
    ours |= {"interp", "benchmarks", "training", "experiments", "tests", *sys.stdlib_module_names}
    for path in paths:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            aliases = [alias.name for alias in node.names]
            found = aliases if isinstance(node, ast.Import) else [node.module]
            for module in {name.split(".")[0] for name in found} - ours:
                packages = names(known.get(module, ()))
                assert packages & declared, f"{path}: {module} is not in pyproject.toml"
                assert packages & pinned, f"{module} is not in constraints.txt"


def test_no_number_is_shown_with_a_minus_before_a_zero():
    """Every format of a fixed number of decimals in an f-string has the option z (-0.000 is 0)."""
    for path in modules().values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
                spec = ast.unparse(node.format_spec)[2:-1]
                decimals = re.search(r"\.[\d{}\w]+f$", spec)
                assert not decimals or "z" in spec, f"{path}:{node.lineno}: write z before {spec}"


def test_no_draw_follows_the_order_of_a_set():
    """A set of strings is in another order in each process: what is drawn along it differs too."""
    drawing = re.compile(r"\brng\b|\bgenerator\b|default_rng|manual_seed|shuffle")

    def unordered(node):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if isinstance(node, ast.BinOp):
            return unordered(node.left) or unordered(node.right)
        return isinstance(node, ast.Set | ast.SetComp) or (
            called and node.func.id in ("set", "frozenset")
        )

    paths = list(modules().values())
    for folder in ("benchmarks", "training", "experiments"):
        paths += (ROOT / folder).rglob("*.py")
    for path in paths:
        for function in ast.walk(tree(path)):
            if not isinstance(function, ast.FunctionDef) or not drawing.search(
                ast.unparse(function)
            ):
                continue
            nodes = list(ast.walk(function))
            sets = {
                name.id
                for node in nodes
                if isinstance(node, ast.Assign) and unordered(node.value)
                for name in node.targets
                if isinstance(name, ast.Name)
            }
            for node in nodes:
                if isinstance(node, ast.For | ast.comprehension):
                    along = ast.unparse(node.iter)
                    found = along in sets or unordered(node.iter)
                    assert not found, f"{path}:{node.iter.lineno}: sort {along}"

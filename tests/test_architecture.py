"""The house rules: imports run one way, doors are thin, nothing outgrows its room."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = """
errors components files records schema metrics nulls folds figures charts charts_grids
charts_steering
diagrams plots report_page report
positions inputs continuations task_files prompts scores probes
toys.toy toys.build toys.circuits toys
models.embedded models.architecture models.families models.batches models.language_model
models.checkpoints models.organisms models.checks models
keys interventions patterns graph
engine engine.layout engine.memory engine.resume engine.stopping engine.forward engine.restart
engine.sites engine.sweep engine.cost engine.decode engine.deltas engine.writes engine.edges
engine.gradients engine.products loading store toys.compiled
kept_runs ablated_runs capture ablation cumulative text_runs intervened generation triggered
references sweeps hookloop patching joint paths heads
attention communication silencing lens glu probing separation comparison transfer words
firstorder attribution
chat directions projections refusal_score steering steered geometry weight_edits selection
judge_rules judging over_refusal trajectories constellations task_steering
switching head_roles head_scan interchange
circuits circuits.ablations circuits.random_masks circuits.circuit circuits.mib
circuits.search circuits.curves circuits.faithfulness circuits.room circuits.trials
circuits.evaluation circuits.neurons circuits.knockouts circuits.stability circuits.edge_scores
circuits.estimates circuits.flow circuits.single circuits.scoring circuits.full circuits.acdc
circuits.masks circuits.redundancy circuits.recovery
circuits.places circuits.positioned circuits.narrowing circuits.finding
circuits.comparing circuits.shelf circuits.drawing circuits.drawing_places
tasks.words tasks.names tasks.objects tasks.generators tasks.arithmetic tasks.countdown tasks.taboo
tasks
circuits.known
cases
studies studies.pace studies.steps studies.workers studies.frame studies.shown studies.verification
studies.verification.samples
studies.verification.behaviour studies.verification.outcomes studies.verification.context
studies.verification.intervening studies.verification.controls studies.verification.generating
studies.verification.steering studies.verification.reading studies.verification.feeding
studies.verification.finding studies.verification.comparing studies.verification.study
studies.verification.claims studies.verification.published studies.verification.sections_read
studies.verification.sections_changed studies.verification.sections_base
studies.verification.write_up
studies.reuse studies.reuse.suite studies.reuse.context studies.reuse.overlap
studies.reuse.staging studies.reuse.labels studies.reuse.writing studies.reuse.comparing
studies.reuse.changed
studies.reuse.imposing studies.reuse.repairing studies.reuse.study studies.reuse.claims
studies.reuse.sections studies.reuse.sections_used studies.reuse.write_up
studies.refusal studies.refusal.context studies.refusal.behaviour studies.refusal.separating
studies.refusal.pointing studies.refusal.angles studies.refusal.heading
studies.refusal.constellating studies.refusal.methods studies.refusal.comparing
studies.refusal.chance studies.refusal.neurons studies.refusal.study
studies.refusal.sections_steered studies.refusal.claims studies.refusal.sections
studies.refusal.sections_heads studies.refusal.write_up
peak bench bench_beside bench_circuits bench_peer terminal
cli_bench cli_export cli_known cli_narrow cli_circuits cli_studies cli ui
""".split()
MEASUREMENTS = set(
    """
    patching joint paths heads attention communication silencing lens glu probing separation
    comparison
    transfer words attribution
    geometry selection over_refusal constellations head_roles head_scan interchange
    """.split()
)
HEAVY = {"torch", "numpy", "transformers", "transformer_lens", "plotly"}


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
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def place(name: str) -> int:
    """Where a module stands in the reading order."""
    if name.startswith("ui"):
        return ORDER.index("ui")
    assert name in ORDER, f"interp/{name.replace('.', '/')}.py is not in the reading order"
    return ORDER.index(name)


@pytest.mark.parametrize("name", modules())
def test_imports_run_upwards(name):
    for imported in imports(modules()[name]):
        if imported.startswith("interp."):
            other = imported.removeprefix("interp.")
            assert place(other) <= place(name), f"{name} imports {other}, which comes later"


def test_measurements_do_not_import_each_other():
    for name in MEASUREMENTS:
        others = {f"interp.{other}" for other in MEASUREMENTS - {name}}
        assert not imports(modules()[name]) & others, name


def test_readme_gives_the_same_order():
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## Reading order") :]
    rooms = [name for name in ORDER if "." not in name]
    missing = [name for name in rooms if f"`{name}`" not in section]
    assert not missing
    assert rooms == sorted(rooms, key=lambda name: section.index(f"`{name}`"))


def test_doors_import_nothing_heavy():
    doors = [ROOT / "app.py", *(ROOT / "interp" / "ui").rglob("*.py"), ROOT / "interp/cli.py"]
    for path in doors:
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & HEAVY, f"{path} imports {roots & HEAVY}"


def test_streamlit_stays_in_the_app():
    for name, path in modules().items():
        if not name.startswith("ui"):
            assert "streamlit" not in {i.split(".")[0] for i in imports(path)}


def test_backend_stays_with_the_models():
    for name, path in modules().items():
        roots = {i.split(".")[0] for i in imports(path)}
        if not name.startswith(("models", "bench")):
            assert "transformer_lens" not in roots, name


@pytest.mark.parametrize("name", modules())
def test_sizes(name):
    lines = len(modules()[name].read_text().splitlines())
    assert lines <= 450, f"{name} has {lines} lines"


@pytest.mark.parametrize("name", modules())
def test_public_functions_say_what_they_do(name):
    tree = ast.parse(modules()[name].read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            every = [*node.args.args, *node.args.kwonlyargs]
            assert all(a.annotation for a in every) and node.returns, f"{name}.{node.name}"  # noqa: PT018


def test_importing_is_quick_and_changes_nothing():
    script = (
        "import sys, interp; from interp.cli import app; "
        f"heavy = {sorted(HEAVY)!r}; print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_what_is_imported_is_declared_and_pinned():
    """`compile_tracr.py` runs in an environment of its own, as it says."""

    def names(lines):
        return {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in lines}

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    declared = names([*project["dependencies"], *(line for extra in extras for line in extra)])
    pinned = names((ROOT / "constraints.txt").read_text().splitlines())
    paths = [ROOT / "app.py"]
    for folder in ("interp", "experiments", "tests"):
        paths += (path for path in (ROOT / folder).rglob("*.py") if path.name != "compile_tracr.py")
    known, ours = packages_distributions(), {path.stem for path in paths}
    ours |= {"interp", "experiments", "tests", *sys.stdlib_module_names}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            aliases = [alias.name for alias in node.names]
            found = aliases if isinstance(node, ast.Import) else [node.module]
            for module in {name.split(".")[0] for name in found} - ours:
                packages = names(known.get(module, ()))
                assert packages & declared, f"{path}: {module} is not in pyproject.toml"
                assert packages & pinned, f"{module} is not in constraints.txt"

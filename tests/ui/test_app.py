"""The workbench, page by page, on a toy model whose circuit is known."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")

from streamlit.testing.v1 import AppTest

import interp
from interp.core.errors import InterpError
from interp.ui.shared import cache, offered, state, widgets
from tests.pages import APP, downloads, named, opened, wait

PATCHING = "interp/ui/views/patching.py"
SETUP = "interp/ui/views/setup.py"
LINK = {"model": "toy-induction", "task": "toy-induction", "n": "12"}
SWEEP = {"site": "z", "by": ("layer", "head"), "direction": "denoise"}


def run_sweep(at: AppTest) -> AppTest:
    return wait(at, "Run", seconds=60)


def top(at: AppTest) -> list[str]:
    return list(at.dataframe[0].value["component"])


def test_setup_explains_and_loads_nothing() -> None:
    at = opened(SETUP)
    assert at.title[0].value == "Setup"
    assert not at.metric


def test_load_button_shows_baselines_capabilities_and_prompts() -> None:
    at = opened(SETUP)
    named(at.button, "Try a toy").click().run()
    assert not at.exception
    assert not at.error
    assert at.metric[0].value == "1.000"
    sites = at.dataframe[1].value.set_index("site")
    assert list(sites.index) == list(interp.core.SITES)
    assert sites.loc["k", "components per layer"] == "2 KV heads"
    assert sites.loc["z", "offered"] == "✓"
    assert at.query_params["model"] == "toy-induction"
    space: dict = {}
    exec(at.code[-1].value.replace("print(", "report = ("), space)
    assert at.metric[2].value == f"{space['report'].clean.mean:.3f}"
    assert {"JSONL", "Notebook"} <= downloads(at)
    assert any("corrupted" in block.proto.body for block in at.get("html"))


@pytest.mark.long
def test_run_then_keyboard_selection_shows_the_detail() -> None:
    at = run_sweep(opened(PATCHING, **LINK))
    assert set(top(at)[:2]) == {"L0H1", "L1H2"}
    named(at.number_input, "Layer").set_value(1).run()
    named(at.number_input, "Head").set_value(2).run()
    assert not at.exception
    titles = [element.value for element in at.subheader]
    assert titles[:2] == ["L1H2", "Inside L1H2"]
    assert len(at.get("plotly_chart")) == 4
    assert at.query_params["layer"] == "1"
    assert at.query_params["head"] == "2"
    assert "scores.estimate('L1H2')" in at.code[0].value
    named(at.button, "Clear").click().run()
    assert "layer" not in at.query_params


def test_link_of_a_stored_result_opens_without_a_run(monkeypatch) -> None:
    model = interp.load_model("toy-induction")
    task = interp.load_task("toy-induction", model, n=12)
    scores = interp.activation_patching(model, task, **SWEEP)

    def refuse(*args, **options):
        raise AssertionError("nothing should run")

    monkeypatch.setattr("interp.patching.activation.run_sweep", refuse)
    at = opened(PATCHING, **LINK, layer="0", head="1")
    shown = at.dataframe[0].value
    assert top(at) == [found.label for found in scores.top(len(shown))]
    assert list(shown["effect"]) == [found.value for found in scores.top(len(shown))]
    assert at.subheader[0].value == "L0H1"


@pytest.mark.parametrize(
    ("link", "charts"),
    [
        ({"site": "k", "layer": "1", "head": "1"}, 4),
        ({"site": "resid_post", "layer": "1", "position": "last"}, 2),
        ({"by": "component-position", "layer": "1", "head": "2"}, 4),
        ({"site": "post", "layers": "1", "layer": "1", "head": "3"}, 2),
        ({"site": "mlp_out", "by": "layer", "direction": "noise", "layer": "0"}, 2),
    ],
)
def test_every_shape_of_sweep_draws_and_restores_its_cell(link, charts) -> None:
    at = run_sweep(opened(PATCHING, **LINK, **link))
    assert len(at.get("plotly_chart")) == charts
    assert not at.warning


@pytest.mark.long
def test_a_mean_is_over_other_prompts() -> None:
    at = run_sweep(opened(PATCHING, **LINK, source="mean"))
    assert not at.error
    model = interp.load_model("toy-induction")
    task = interp.load_task("toy-induction", model, n=12)
    others = interp.load_task("toy-induction", model, n=24, seed=1).without(task)
    scores = interp.activation_patching(model, task, **SWEEP, source="mean", reference=others)
    assert scores.top(1)[0].label == top(at)[0]
    assert f"reference={others.source}" in scores.provenance.call
    eval(others.source, {"interp": interp, "model": model, "task": task})


def test_a_link_with_nonsense_is_told_so() -> None:
    at = run_sweep(opened(PATCHING, **LINK, layer="99", head="2", site="z", direction="sideways"))
    said = at.warning[0].value.replace("\\", "")
    assert "layer=99: there are 0 to 1" in said
    assert "direction=sideways: none of denoise, noise" in said
    assert at.query_params["direction"] == "denoise"


def test_an_error_is_shown_once_where_it_arose() -> None:
    at = opened(SETUP, model="toy-induction", task="nonsense")
    assert len(at.error) == 1
    assert "nonsense" in at.error[0].value
    assert "\\. Known" in at.error[0].value


def test_links_round_trip() -> None:
    chosen = state.Selection(
        model="m", positions=("S1+1", "last"), layers=(1, 2), neurons=(0, 7), layer=1, head=2
    )
    assert state.read(state.link(chosen)) == (chosen, [])


HUGE = "9" * 5000
ABSURD = [
    *((name, value) for name in ("n", "seed", "layer", "prompt", "edges", "layers", "neurons")
      for value in (HUGE, "1" * 25, "-1", "1.5", "", "nan", "٣", "1e3", " 1")),
    ("n", "0"), ("n", "513"), ("edges", "0"), ("head", "²"),
    *((name, value) for name in ("dtype", "corruption", "site", "by", "direction", "source")
      for value in ("", "nonsense", HUGE)),
    *((name, value) for name in ("model", "task", "position", "positions", "finder", "removed",
      "price", "look", "edge", "node", "place", "worth", "left", "right")
      for value in ("", " ", HUGE, "a\x00b", "a\nb")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), ABSURD, ids=lambda text: ascii(text)[:20])
def test_absurd_values_of_a_link_are_ignored_with_a_word(name, value) -> None:
    chosen, words = state.read({name: [value]})
    assert chosen == state.Selection()
    assert len(words) == 1
    assert words[0].startswith(f"{name}=")
    assert len(words[0]) < 300


STRANGE = {
    "site": "pre_linear", "positions": "nowhere", "layer": "7", "layers": "7", "neurons": "999999",
    "prompt": "400", "edges": "9007199254740991", "finder": "guess", "removed": "x", "price": "x",
    "look": "x", "left": "x", "right": "x", "worth": "x", "edge": "x->y", "node": "x",
}  # fmt: skip
"""Well-formed values that nothing loaded has."""


@pytest.mark.parametrize("page", ["setup", "patching", "circuits"])
def test_what_is_not_loaded_is_ignored_with_a_word(page) -> None:
    where = f"interp/ui/views/{page}.py"
    at = opened(where, **(LINK | STRANGE | {"seed": "1" * 25, "head": HUGE, "n": "12"}))
    assert not at.error
    said = at.warning[0].value.replace("\\", "")
    for name in ("seed", "head", "positions", "layer", "layers", "neurons", "prompt"):
        assert f"{name}=" in said
    if page == "circuits":
        for name in ("finder", "removed", "look"):
            assert f"{name}=" in said
        at = opened(where, **LINK, price="x", finder="ACDC")
        assert "price=x\\: there are 0\\.02, " in at.warning[0].value
        at = opened(where, **LINK, edges=STRANGE["edges"])
        assert "edges=9007199254740991\\: there are 1 to " in at.warning[0].value
    assert "layer" not in at.query_params
    named(at.button, "Dismiss").click().run()
    assert not at.warning


def test_a_link_to_a_model_that_is_not_offered_asks_first(tmp_path, monkeypatch) -> None:
    loaded, said = [], []

    def load(name, **options):
        loaded.append(name)
        if Path(name).is_dir():
            raise InterpError(f"loading {name!r}", "no weights in it", "add them")
        raise OSError(f"{name} is not there")

    monkeypatch.setattr("interp.load_model", load)
    (tmp_path / "there").mkdir()
    for path in (tmp_path / "there", tmp_path / "missing"):
        at = opened(SETUP, model=str(path), layer="1")
        assert not loaded
        named(at.button, "Load it").click().run()
        assert loaded.pop() == str(path)
        said.append(at.error[0].value.replace(path.name, "NAME"))
    assert said[0] == said[1]
    assert str(tmp_path) not in said[0]


def test_the_owners_models_are_offered_by_their_folders_names(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["app.py", "--models", str(tmp_path / "models")])
    assert offered.own_models() == {"mine": folder}
    assert "mine" in offered.offered()
    wrapped = interp.load_model("toy-induction")
    monkeypatch.setattr("interp.load_model", lambda name, **options: replace(wrapped, name=name))
    assert offered.load("mine", "float32").name == "mine"
    assert offered.without_paths(f"loading {str(folder)!r}") == "loading '…/mine'"
    assert offered.without_paths("HuggingFaceTB/SmolLM2 and/or a/b/c") == (
        "HuggingFaceTB/SmolLM2 and/or a/b/c"
    )


@pytest.mark.long
def test_two_visitors_with_two_models_do_not_load_them_again_and_a_third_frees_one(
    monkeypatch,
) -> None:
    cache.load_model.clear()
    loaded: list[str] = []
    whole = interp.load_model

    def load(name, **options):
        loaded.append(name)
        return whole(name, **options)

    monkeypatch.setattr("interp.load_model", load)
    names = ("toy-induction", "toy-or") * 3
    model: Any = None
    for name in names:
        model = cache.load_model(name, "float32")
        cache.look(model, (1, 2, 3), None, None)
    assert loaded == list(names[:2])
    oldest = weakref.ref(cache.load_model("toy-induction", "float32"))
    model = cache.load_model("toy-verification", "float32")
    cache.load_model("toy-or", "float32")
    gc.collect()
    assert oldest() is None
    assert model is cache.load_model("toy-verification", "float32")


def test_a_click_reports_its_point_in_either_form() -> None:
    assert widgets.point_data({"customdata": {"0": 3, "1": 7}}) == [3, 7]
    assert widgets.point_data({"customdata": [3, 7]}) == [3, 7]


def test_tokens_are_escaped() -> None:
    assert widgets.plain("<b> *x*") == "\\<b\\> \\*x\\*"
    assert "<script>" not in widgets.chip("<script>", "red", hint="token 0")


def test_the_app_imports_nothing_heavy_itself() -> None:
    heavy = ("torch", "transformers", "numpy", "plotly")
    for path in [APP, *(APP.parent / "interp" / "ui").rglob("*.py")]:
        lines = path.read_text(encoding="utf-8").splitlines()
        imports = [
            line.split()[1] for line in lines if line.strip().startswith(("import ", "from "))
        ]
        assert not [name for name in imports if name.split(".")[0] in heavy], path


def test_a_position_of_another_map_is_left_aside():
    model = interp.load_model("toy-induction")
    task = interp.load_task("toy-induction", model, n=4)
    heads = interp.activation_patching(model, task, site="z", by=("layer", "head"), cache=False)
    assert state.cell(heads, state.Selection(layer=1, head=2, position="last")) == (1, 2)

"""The page Weights: its numbers are those of the functions, and what it refuses."""

from dataclasses import replace

import pytest

import interp
from interp.deltas.compression import compress
from interp.deltas.merging import merge
from interp.deltas.weight_trial import WeightTrial, try_weights
from interp.models.loading import reinitialised
from interp.models.weight_delta import WeightDelta, load_delta
from interp.results.kept import kept_results
from interp.ui.runs.reopen import page_of
from interp.ui.shared import jobs
from interp.ui.weights import chosen
from interp.ui.weights.chosen import AskedTrial, ChosenChange, read_trial
from tests.pages import charts, downloads, named, numbers, opened, table_with, wait

PAGE = "interp/ui/views/weights.py"
SETUP = {"model": "toy-induction", "task": "toy-induction", "n": "8"}
WIDEST = 24
"""Characters that fit into a list beside the page."""
RANDOM = {"weights": "compression", "compressed": "random", "share": "0.3", "draws": "3"}


@pytest.fixture(autouse=True)
def _fewer_texts(monkeypatch):
    monkeypatch.setattr(chosen, "PASSAGES", 2)


@pytest.fixture
def measured(monkeypatch):
    """Makes a job run in this process, at once."""
    said = []

    class Here:
        say = said.append

        def __call__(self, done: int, total: int) -> None:
            said.append(f"{done} of {total}")

    monkeypatch.setattr(
        jobs, "start", lambda key, work, counted: work(progress=Here(), cancelled=lambda: False)
    )
    return said


def toy() -> tuple:
    model = interp.load_model("toy-induction")
    return model, interp.load_task("toy-induction", model, n=8)


def cells(trial: WeightTrial) -> set[str]:
    rows = trial.to_dataframe().to_dict("records")
    return {f"{x['mean']:z.3f} [{x['low']:z.3f}, {x['high']:z.3f}]" for x in rows}


def test_the_numbers_are_those_of_the_functions(measured) -> None:
    at = opened(PAGE, **SETUP, **RANDOM, carriers=["L1H2"])
    assert "compress(model, 'random', share=0.3)" in at.code[0].value
    named(at.button, "Measure").click().run()
    assert not at.exception
    assert not at.error
    model, task = toy()
    delta = compress(model, "random", share=0.3)
    texts = interp.core.shipped_passages()[:2]
    trial = try_weights(model, delta, task, heads=["L1H2"], texts=texts, draws=3)
    shown = table_with(at, "random change")
    assert cells(trial) == {x for when in shown.columns[1:] for x in shown[when]} - {"–"}
    drawn = charts(at)[0]["data"][0]
    assert numbers(drawn["z"]) == pytest.approx(trial.sizes.values.T, abs=1e-6)
    assert {"CSV", "JSON", "Notebook"} <= downloads(at)
    assert measured[-1] == "64 of 64"
    exec(at.code[-1].value, again := {})
    assert again["found"].survival == trial.survival
    (kept,) = kept_results()
    assert (kept.kind, kept.task, kept.n) == ("change of weights", "toy-induction", 8)
    page, wanted = page_of(kept)
    assert page.stem == "weights"
    link = {**SETUP, **RANDOM, "carriers": ("L1H2",), "draw_seed": 0}
    assert {name: str(wanted[name]) for name in link} == {x: str(y) for x, y in link.items()}


@pytest.fixture
def two_models(monkeypatch):
    """The toy, and the same one with weights drawn anew, which is offered as "drawn-anew"."""
    model = interp.load_model("toy-induction")
    other = replace(reinitialised(model, seed=0), name="drawn-anew")
    load = interp.load_model
    monkeypatch.setattr(
        interp,
        "load_model",
        lambda name, **more: other if name == other.name else load(name, **more),
    )
    there = dict.fromkeys(("toy-induction", "toy-or", other.name), "a toy")
    monkeypatch.setattr("interp.ui.shared.offered.offered", lambda: there)
    return model, other


def test_another_model_is_a_change_of_weights(measured, two_models) -> None:
    model, other = two_models
    at = opened(PAGE, **SETUP, weights="model", carriers=["L1H2"], draws="3")
    assert any("Choose the other model" in one.value for one in at.info)
    assert "Measure" not in [one.label for one in at.button]
    named(at.selectbox, "The other model").set_value(other.name).run()
    named(at.button, "Measure").click().run()
    assert not at.exception
    assert not at.error
    task, texts = toy()[1], interp.core.shipped_passages()[:2]
    delta = WeightDelta.between(model, other)
    trial = try_weights(model, delta, task, heads=["L1H2"], texts=texts, draws=3)
    shown = table_with(at, "random change")
    assert cells(trial) == {x for when in shown.columns[1:] for x in shown[when]} - {"–"}
    exec(at.code[-1].value, again := {})
    assert again["found"].survival == trial.survival
    (kept,) = kept_results()
    wanted = page_of(kept)[1]
    assert (wanted["weights"], wanted["other"]) == ("model", other.name)
    keys = {
        AskedTrial(
            model=model, task=task, change=ChosenChange(other=one), heads=(), others=None,
            draws=3, seed=0,
        ).key
        for one in (other, reinitialised(model, seed=1))
    }  # fmt: skip
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("name", "words"), [("toy-or", "absent or unlike"), ("drawn-anew", "the same weights")]
)
def test_a_model_that_does_not_fit_is_said(two_models, monkeypatch, name, words) -> None:
    model, other = two_models
    if words == "the same weights":
        monkeypatch.setattr(interp, "load_model", lambda *_, **__: model)
    at = opened(PAGE, **SETUP, weights="model", other=name)
    assert words in at.error[0].value
    assert not at.exception


@pytest.mark.long
def test_two_changes_stand_side_by_side_on_runs(measured) -> None:
    for share in ("0.3", "0.6"):
        at = opened(PAGE, **SETUP, **RANDOM | {"share": share}, carriers=["L1H2"])
        assert max(len(x) for box in at.sidebar.selectbox for x in box.options) <= WIDEST
        named(at.button, "Measure").click().run()
    names = [one.name for one in kept_results()]
    assert len(names) == 2
    at = opened("interp/ui/views/runs.py", run=names[0], beside=names[1])
    shown = table_with(at, "left: change").set_index("measure")
    for side, name in zip(("left", "right"), names, strict=True):
        rows = read_trial(name.rpartition("/")[2]).to_dataframe().to_dict("records")
        for row in rows:
            if "change" in row["when"]:
                cell = f"{row['mean']:z.3f} [{row['low']:z.3f}, {row['high']:z.3f}]"
                assert shown.loc[row["measure"], f"{side}: {row['when']}"] == cell
    assert shown.loc["metric", "left: change"] != shown.loc["metric", "right: change"]
    alone = opened("interp/ui/views/runs.py", run=names[0])
    assert "right: change" not in table_with(alone, "left: change")


def test_heads_that_are_not_named_are_chosen_on_other_pairs(measured) -> None:
    at = opened(PAGE, **SETUP, **RANDOM)
    named(at.button, "Measure").click().run()
    assert not at.error
    model, task = toy()
    others = interp.load_task("toy-induction", model, n=16, seed=1).without(task)
    best = [str(x.component) for x in interp.attribution_patching(model, others).top(chosen.TOP)]
    assert f"Heads: {', '.join(best)}," in at.caption[0].value
    (kept,) = kept_results()
    assert page_of(kept)[1]["carriers"] == ()
    exec(at.code[-1].value, again := {})
    assert list(again["found"].survival.heads_before.components) == best


def test_the_same_change_of_another_seed_share_or_head_is_another_result() -> None:
    model, task = toy()
    change = ChosenChange(how="random", share=0.3)
    plain = {"model": model, "task": task, "change": change, "heads": ("L1H2",)}
    plain |= {"others": None, "draws": 3, "seed": 0}
    others = [
        {"seed": 1}, {"draws": 4}, {"heads": ("L1H1",)}, {"heads": (), "others": task},
        {"task": task.first(4)}, {"change": ChosenChange(how="random", share=0.4)},
        {"change": ChosenChange(how="wanda", share=0.3)},
        {"change": ChosenChange(how="round", bits=4)},
        {"change": ChosenChange(how="round", bits=5)},
        {"change": ChosenChange(adapters=("a",))}, {"change": ChosenChange(adapters=("b",))},
        {"change": ChosenChange(adapters=("a", "b"), rule="sum")},
        {"change": ChosenChange(adapters=("a", "b"), rule="mean")},
    ]  # fmt: skip
    keys = [AskedTrial(**{**plain, **other}).key for other in ({}, *others)]
    assert len({*keys}) == len(keys)
    assert AskedTrial(**plain).key == keys[0]


def test_a_job_measures_it_and_the_shared_model_stays() -> None:
    at = opened(PAGE, **SETUP, **RANDOM)
    before = interp.load_model("toy-induction").hash
    wait(at, "Measure", seconds=300)
    assert table_with(at, "random change")["measure"][0] == "metric"
    again = opened(PAGE, **SETUP, **RANDOM)
    assert table_with(again, "random change").equals(table_with(at, "random change"))
    assert interp.load_model("toy-induction").hash == before


def test_what_there_is_not_is_said(monkeypatch) -> None:
    at = opened(PAGE, **SETUP, adapters=["refusal-smollm2"], carriers=["L9H9"], share="0.33")
    said = " ".join(x.value for x in at.warning).replace("\\", "")
    assert "adapters=refusal-smollm2: there are none" in said
    assert "carriers=L9H9" in said
    assert "share=0.33" in said
    assert any("No shipped adapter has this model" in x.value for x in at.caption)


@pytest.mark.long
def test_the_example_runs_at_one_click_and_a_merge_tells_its_overlap(
    loaded, measured, monkeypatch
) -> None:
    monkeypatch.setattr("interp.load_model", lambda name, dtype="float32": loaded)
    at = opened(PAGE, draws="2")
    assert "refuse gardening" in at.markdown[1].value
    named(at.button, "Run the example").click().run(timeout=900)
    assert not at.exception
    assert not at.error
    task = interp.load_task("ioi", loaded, n=16)
    delta, texts = load_delta("refusal-smollm2", loaded), interp.core.shipped_passages()[:2]
    heads = table_heads(at)
    trial = try_weights(loaded, delta, task, heads=heads, texts=texts, draws=2)
    shown = table_with(at, "random change")
    assert cells(trial) == {x for when in shown.columns[1:] for x in shown[when]} - {"–"}
    both = ("countdown-smollm2", "refusal-smollm2")
    link = {"model": "smollm2-135m-instruct", "task": "ioi", "n": "4", "draws": "2"}
    at = opened(PAGE, **link, weights="adapters", adapters=both, merging="ram", carriers=["L23H3"])
    named(at.button, "Measure").click().run(timeout=900)
    assert not at.error
    expected = merge([load_delta(name, loaded) for name in both], "ram").shares()
    table = table_with(at, "shared").set_index("change")
    for name, share in expected.items():
        assert table.loc[name].to_dict() == pytest.approx(share)
    (kept,) = [one for one in kept_results() if one.n == 4]
    wanted = page_of(kept)[1]
    assert (wanted["adapters"], wanted["merging"]) == (both, "ram")


def table_heads(at) -> list[str]:
    """The heads that the page says it measured."""
    words = next(x.value for x in at.caption if "Heads: " in x.value)
    return words.split("Heads: ")[1].split(", patched")[0].split(", ")

"""The page Runs: the list, notes, opening again, comparing and deleting."""

from dataclasses import replace

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from streamlit.testing.v1 import AppTest

import interp
from interp.circuits.discovery.find import Finder, findings_path
from interp.circuits.evaluation.evaluate import evaluate
from interp.circuits.files.saved import save_circuit
from interp.core.files import cache_dir
from interp.core.records import read_sealed, write_sealed
from interp.overview import prompt_set
from interp.overview.prompt_set import load_samples
from interp.probing.probe_files import keep_probes
from interp.probing.training import train_probes
from interp.results.comparison import compare_scores
from interp.results.direction import Direction, keep_direction
from interp.results.kept import find_result, kept_results
from interp.results.scores import Scores
from interp.studies.study import write_manifest
from interp.tasks.saved import save_task
from interp.ui.prompts import scanned
from interp.ui.runs.reopen import page_of
from interp.ui.shared import offered, widgets
from interp.ui.shared.prompts import AskedPrompt, keep
from interp.ui.studies.pages import ALL_PAGES
from tests.pages import charts, downloads, named, numbers, opened, table_with, wait

RUNS = "interp/ui/views/runs.py"
SETUP = {"model": "toy-induction", "task": "toy-induction", "n": "12"}


def swept(**options) -> str:
    """The name of a kept sweep of the toy."""
    model = interp.load_model("toy-induction")
    interp.activation_patching(model, interp.load_task("toy-induction", model, n=12), **options)
    return kept_results()[0].name


def said(at: AppTest) -> str:
    """Everything that the page warns of, without Markdown's backslashes."""
    every = [*at.warning, *at.error, *at.info, *at.success]
    return " ".join(one.value for one in every).replace("\\", "")


def test_the_example_fills_an_empty_page_and_compares_two_sweeps() -> None:
    at = opened(RUNS)
    assert "No result is kept yet" in said(at)
    named(at.button, "Run the example").click().run()
    assert not at.exception
    listed = table_with(at, "kind")
    assert listed["model"].tolist() == ["toy-induction"] * 2
    left, right = (Scores.load(cache_dir() / at.query_params[f]) for f in ("run", "beside"))
    maps = [chart["data"][0] for chart in charts(at)]
    for drawn, scores in zip(maps, (left, right), strict=False):
        assert numbers(drawn["z"]) == pytest.approx(scores.values, abs=1e-6)
    assert maps[0]["zmax"] == maps[1]["zmax"]
    assert maps[2]["zmin"] == -maps[2]["zmax"]
    found = compare_scores(left, right)
    assert abs(found.values).max() < 1e-5  # the planted circuit is both enough and needed
    assert (maps[2]["zmin"], maps[2]["zmax"]) == pytest.approx((-1e-3, 1e-3), rel=1e-3)
    assert numbers(maps[2]["z"]) == pytest.approx(found.values, abs=1e-6)
    rows = table_with(at, "left - right")
    difference = found.to_dataframe()["difference"].tolist()
    assert rows["left - right"].tolist() == pytest.approx(difference, abs=1e-6)
    assert any("paired over the 24 prompts" in one.value for one in at.caption)
    assert {"CSV", "JSON", "Notebook"} <= downloads(at)
    exec(at.code[0].value, again := {})
    assert interp.results.compare_scores(again["left"], again["right"]).values == pytest.approx(
        found.values
    )


def test_a_note_stays_and_filters() -> None:
    one, _ = swept(), swept(direction="noise")
    at = opened(RUNS, run=one)
    named(at.text_area, "Note").set_value("first try").run()
    assert find_result(one).note == "first try"
    named(at.text_input, "Filter").set_value("first denoise").run()
    assert table_with(at, "kind")["note"].tolist() == ["first try"]
    named(at.text_input, "Filter").set_value("nothing like it").run()
    assert "has all these words" in said(at)


def test_deleting_asks_and_then_another_visit_is_told() -> None:
    name = swept()
    at = opened(RUNS, run=name)
    assert (cache_dir() / f"{name}.safetensors").exists()
    named(at.button, "Delete it").click().run()
    assert not (cache_dir() / f"{name}.safetensors").exists()
    assert "run" not in at.query_params
    assert "Deleted" in said(at)
    again = opened(RUNS, run=name)
    assert "is not kept here" in said(again)
    named(again.button, "Dismiss").click().run()
    assert "run" not in again.query_params


@pytest.mark.parametrize("name", ["../../etc/passwd", "results/x", "/etc/passwd", "studies"])
def test_a_path_in_a_link_reaches_no_file(name, tmp_path) -> None:
    swept()
    at = opened(RUNS, run=name, beside=name)
    assert "is not kept here" in said(at)
    assert not [button for button in at.button if button.label == "Delete it"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"site": "k", "by": ("layer", "kv_head"), "direction": "noise"},
        {"site": "resid_post", "by": ("layer", "position"), "positions": ("last",)},
        {"by": ("layer", "head", "position"), "positions": ("last",)},
        {"site": "post", "by": ("layer", "neuron"), "layers": [1], "components": range(3)},
        {"source": "zero", "direction": "noise", "unit": "metric"},
    ],
)
def test_a_sweep_opens_on_its_page_without_a_run(options, monkeypatch) -> None:
    name = swept(**options)
    monkeypatch.setattr("interp.patching.activation.run_sweep", None)
    at = opened(RUNS, run=name)
    named(at.button, "Open").click().run()
    assert not at.exception
    assert not at.error
    assert "Stored result" in at.success[0].value
    assert at.header[0].value.endswith(options.get("site", "z"))


def test_the_strongest_cells_of_a_sweep_are_listed() -> None:
    name = swept()
    scores = Scores.load(cache_dir() / name)
    rows = table_with(opened(RUNS, run=name), "95 % interval")
    assert rows["component"].tolist() == [one.label for one in scores.top(8, by="absolute")]


def test_paths_open_on_their_page_without_a_run(monkeypatch) -> None:
    model = interp.load_model("toy-induction")
    task = interp.load_task("toy-induction", model, n=12)
    interp.path_patching(model, task, receivers=["L1H2.q"], senders="mlps", positions=["last"])
    at = opened(RUNS, run=kept_results()[0].name)
    named(at.button, "Open").click().run()
    assert not at.exception
    assert not at.error
    assert at.query_params["receivers"] == "L1H2.q"
    assert not [button for button in at.button if button.label == "Run"]


def test_prompts_of_ones_own_open_too() -> None:
    model = interp.load_model("toy-induction")
    own = save_task(interp.load_task("toy-induction", model, n=12), "mine")
    task = interp.load_task(own.name, model)
    interp.activation_patching(model, task)
    at = opened(RUNS, run=kept_results()[0].name)
    named(at.button, "Open").click().run()
    assert not at.exception
    assert not at.error
    assert at.query_params["task"] == own.name
    assert "Stored result" in at.success[0].value


def test_on_a_shared_server_prompts_of_others_are_not_listed_and_nothing_is_deleted(
    monkeypatch,
) -> None:
    shown = swept()
    model = interp.load_model("toy-induction")
    own = save_task(interp.load_task("toy-induction", model, n=4), "mine")
    interp.activation_patching(model, interp.load_task(own.name, model))
    hidden = kept_results()[0].name
    monkeypatch.setattr("interp.ui.shared.offered.is_shared", lambda: True)
    at = opened(RUNS, run=hidden)
    assert "is not kept here" in said(at)
    assert table_with(at, "kind")["task"].tolist() == ["toy-induction"]
    at = opened(RUNS, run=shown)
    assert not [button for button in at.button if button.label == "Delete it"]
    assert not at.text_area
    at = opened(RUNS, run=hidden, model="toy-induction", task=own.name)
    assert charts(at)


def test_a_sweep_in_the_store_is_listed_and_opened(monkeypatch) -> None:
    monkeypatch.setenv("INTERP_STORE", "memory://pages")
    at = opened(RUNS, run=swept())
    assert table_with(at, "kind")["task"].tolist() == ["toy-induction"]
    assert any("in the store" in block.proto.body for block in at.get("html"))
    assert charts(at)
    named(at.button, "Open").click().run()
    assert not at.exception
    assert "Stored result" in at.success[0].value
    MemoryFileSystem.store.clear()


@pytest.mark.parametrize("hosts", [["localhost", "127.0.0.1"], ["localhost", "team.example"]])
def test_a_server_with_another_name_is_shared(hosts, monkeypatch) -> None:
    monkeypatch.setattr("streamlit.get_option", lambda name: hosts)
    assert offered.is_shared() == ("team.example" in hosts)


@pytest.mark.long
def test_a_circuit_opens_on_its_page() -> None:
    model = interp.load_model("toy-induction")
    find, _ = interp.load_task("toy-induction", model, n=12).split(0.5, seed=0)
    made = interp.find_circuit(model, find, Finder(method="ACDC", threshold=0.05))
    name = kept_results()[0].name
    at = opened(RUNS, run=name)
    named(at.button, "Open").click().run()
    assert not at.exception
    assert at.header[0].value == "ACDC on toy-induction"
    assert at.query_params["price"] == "0.05"
    judged = evaluate(made.circuit(), model, find, random=2, knockouts=0)
    judged.save(findings_path("judged"), key="judged")
    name = kept_results()[0].name
    at = opened(RUNS, run=name)
    named(at.button, "Open").click().run()
    assert not at.exception
    assert at.query_params["look"] == "faithfulness"
    assert at.query_params["edges"] == str(made.circuit().n_edges)
    save_circuit(made.circuit())
    saved = kept_results()[0].name
    at = opened(RUNS, run=saved)
    named(at.button, "Open").click().run()
    assert not at.exception
    assert at.query_params["look"] == "overlap"


@pytest.mark.long
def test_a_circuit_by_token_opens_on_its_page_without_a_run() -> None:
    at = opened("interp/ui/views/circuits.py", **SETUP, finder="ACDC", look="tokens")
    wait(at, "Find", seconds=60)
    wait(at, "Measure", seconds=60)
    drawn = charts(at)
    name = next(one.name for one in kept_results() if one.kind == "circuit by token")
    at = opened(RUNS, run=name)
    named(at.button, "Open").click().run()
    assert not at.exception
    assert not [button for button in at.button if button.label == "Measure"]
    assert charts(at) == drawn


def test_what_no_page_shows_is_read_here() -> None:
    model = interp.load_model("toy-induction")
    task = interp.load_task("toy-induction", model, n=12)
    for options in (
        {"layers": [1]},
        {"site": "post", "by": ["layer", "neuron"], "components": [0, 2]},
    ):
        interp.activation_patching(model, task, **options)
    interp.activation_patching(model, interp.Task(name="mine", pairs=task.pairs))
    for one in kept_results():
        at = opened(RUNS, run=one.name)
        assert any("No page shows it" in words.value for words in at.caption)
        assert charts(at)
    folder = cache_dir() / "studies" / "reuse-abc"
    about = {"model": "m", "model_hash": "h", "settings": {"n": 4, "draws": 2}}
    write_sealed(folder / "study.json", "study other", 1, about)
    at = opened(RUNS, run="studies/reuse-abc")
    assert any("no page about study of other" in one.value for one in at.caption)


@pytest.mark.parametrize("pages", ALL_PAGES, ids=lambda pages: pages.kind.name)
def test_a_study_opens_on_its_page(pages) -> None:
    kind = pages.kind
    folder = cache_dir() / "studies" / f"{kind.name}-abc"
    write_manifest(folder, kind, "m", "h", kind.settings(), dict.fromkeys(kind.beside), "k")
    at = opened(RUNS, run=f"studies/{kind.name}-abc")
    named(at.button, "Open").click().run()
    assert not at.exception
    assert at.query_params[pages.field] == f"{kind.name}-abc"
    assert any(f"{kind.name}-abc" in one.value.replace("\\", "") for one in at.header)


@pytest.mark.long
def test_two_models_stand_side_by_side_and_other_shapes_have_no_difference() -> None:
    one = swept()
    model = interp.load_model("toy-verification")
    interp.activation_patching(model, interp.load_task("toy-verification", model))
    other = kept_results()[0].name
    at = opened(RUNS, run=one, beside=other)
    maps = [chart["data"][0] for chart in charts(at)]
    assert len(maps) == 2
    largest = [abs(Scores.load(cache_dir() / name).values).max() for name in (one, other)]
    assert maps[0]["zmax"] == maps[1]["zmax"] == pytest.approx(max(largest))
    assert min(largest) < max(largest)
    assert "No difference" in said(at)


def test_a_damaged_file_is_said() -> None:
    name = swept()
    path = cache_dir() / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    at = opened(RUNS, run=name)
    assert "damaged or changed" in said(at)


def test_sweeps_that_differ_in_metric_or_positions_say_so() -> None:
    model = interp.load_model("toy-induction")
    task = interp.load_task("toy-induction", model, n=4)
    for made in (task, task.with_metric("log_odds")):
        interp.activation_patching(model, made, source="zero")
    one, other = (kept.name for kept in kept_results()[:2])
    at = opened(RUNS, run=one, beside=other)
    words = " ".join(block.value for block in at.markdown).replace("\\", "")
    assert "metric log_odds" in words
    assert "metric logit_diff" in words
    assert "positions" not in words


def measured(toy, n: int = 4) -> str:
    """The name of kept measures of heads."""
    interp.overview.head_samples(toy, interp.load_task("toy-induction", toy, n=n))
    return kept_results()[0].name


def test_measures_of_heads_are_drawn_and_two_are_compared_prompt_by_prompt(toy) -> None:
    elsewhere, one = measured(toy, 3), measured(toy)
    path = cache_dir() / f"{one}.safetensors"
    facts, arrays = read_sealed(path, prompt_set.KIND, prompt_set.VERSION)
    changed = {k: v if k.startswith(prompt_set.KEPT) else v * 0.5 for k, v in arrays.items()}
    other = path.with_name("other.safetensors")
    write_sealed(other, prompt_set.KIND, prompt_set.VERSION, facts, changed)
    kept = load_samples(path)
    at = opened(RUNS, run=one)
    assert not at.error
    name = named(at.selectbox, "Measure").value
    assert numbers(charts(at)[0]["data"][0]["z"]) == pytest.approx(kept[name].values, abs=1e-6)
    rows = table_with(at, name)
    assert rows[name].tolist() == sorted(rows[name], key=lambda value: -abs(value))
    at = opened(RUNS, run=one, beside="heads/other")
    assert not at.error
    maps = [chart["data"][0] for chart in charts(at)]
    assert maps[0]["zmax"] == maps[1]["zmax"]
    assert numbers(maps[2]["z"]) == pytest.approx(kept[name].values / 2, abs=1e-6)
    low, high = kept[name].minus(load_samples(other)[name]).interval()
    listed = table_with(at, f"{name}, left - right")
    layer, head = map(int, listed["head"][0][1:].split("H"))
    span = widgets.span(low[layer, head], high[layer, head])
    assert listed["95 % interval"][0] == span
    exec(at.code[0].value, again := {})
    assert set(again["left"]) == set(kept)
    at = opened(RUNS, run=one, beside=elsewhere)
    assert "they cannot be paired" in said(at)
    with pytest.raises(interp.InterpError, match="0 prompts in common"):
        kept[name].minus(replace(kept[name], kept=(7, 8, 9, 10)))


def test_measures_of_heads_open_on_their_page(toy) -> None:
    at = opened(RUNS, run=measured(toy))
    named(at.button, "Open").click().run()
    assert not at.exception
    assert not at.error
    assert (at.title[0].value, at.query_params["subject"]) == ("Heads", "set")


@pytest.mark.long
def test_a_scan_is_listed_opens_on_look_and_says_why_it_is_not_compared(smollm) -> None:
    asked = AskedPrompt("The capital of France is")
    keep(asked)
    found = interp.scan(smollm, asked.prompt, k=1)
    kept = {"sentences": found.sentences, "rows": [], "found": found.to_dict()}
    for name, more in (("new", {"typed": asked.hash}), ("old", {})):
        path = cache_dir() / "scans" / f"{name}.json"
        write_sealed(path, scanned.KIND, scanned.VERSION, kept | more, key=name)
    at = opened(RUNS, run="scans/old")
    assert "not kept as a typed prompt" in at.caption[1].value.replace("\\", "")
    assert any("Two scans are not compared" in one.value for one in at.caption)
    at = opened(RUNS, run="scans/new")
    assert found.sentences[0] in " ".join(x.value for x in at.markdown).replace("\\", "")
    page, wanted = page_of(find_result("scans/new"))
    assert (page.stem, wanted["asked"], wanted["reading"]) == ("look", asked.hash, "scan")
    named(at.button, "Delete it").click().run()
    assert not (cache_dir() / "scans" / "new.json").exists()
    assert (cache_dir() / "scans" / "old.json").exists()


def test_a_direction_is_listed_and_opens_where_neurons_are_ranked_by_it(toy) -> None:
    vector = torch.arange(1, toy.d_model + 1, dtype=torch.float64)
    direction = Direction(
        vector=vector, kind="behaviour", site="resid_post", layer=1, position=-1, sign=1,
        n=(2, 2), model_hash=toy.hash,
    )  # fmt: skip
    keep_direction("mood", direction)
    with pytest.raises(interp.InterpError, match="its model by a hash"):
        page_of(find_result("directions/mood"))
    swept()  # says what the model is called
    (found,) = [one for one in kept_results() if one.kind == "direction"]
    assert (found.about, found.model) == ("mood: L1.resid_post", "toy-induction")
    page, wanted = page_of(found)
    assert (page.stem, wanted["ranked"]) == ("neurons", "direction mood")


def test_probes_are_shown_with_their_control_and_opened_where_they_were_made(toy) -> None:
    labels = [i % 2 for i in range(40)]
    states = torch.tensor(labels)[None, :, None] + torch.randn(2, 40, 6)
    source = {"model": toy.name, "model_hash": toy.hash, "site": "resid_post"}
    layers = {"layer": (3, 7)}
    probes = train_probes(states, labels, coordinates=layers, source=source, shuffles=3)
    keep_probes("topic", probes)
    at = opened(RUNS, run="probes/topic")
    assert not at.error
    rows, table = table_with(at, "AUC"), probes.to_dataframe()
    assert rows["AUC"].tolist() == pytest.approx(table["auc"].tolist())
    ends = zip(table["shuffled_auc_low"], table["shuffled_auc_high"], strict=True)
    assert rows["shuffled labels, 95 % range"].tolist() == [widgets.span(*pair) for pair in ends]
    assert table_with(at, "kind")["n"].tolist() == ["40"]
    with pytest.raises(interp.InterpError, match="not made by the page Directions"):
        page_of(find_result("probes/topic"))
    sets = AskedPrompt("a\nb", foil="c\nd")
    keep(sets)
    keep_probes("topic", replace(probes, source={**source, "sets": sets.hash}))
    page, wanted = page_of(find_result("probes/topic"))
    assert (page.stem, wanted) == ("directions", {"model": toy.name, "sets": sets.hash})


def test_scans_and_directions_of_others_are_not_listed_on_a_shared_server(monkeypatch) -> None:
    write_sealed(
        cache_dir() / "scans" / "one.json", scanned.KIND, 2, {"found": {"difference": "x"}}
    )
    assert table_with(opened(RUNS), "kind")["kind"].tolist() == ["scan"]
    monkeypatch.setattr(offered, "is_shared", lambda: True)
    assert "No result is kept yet" in said(opened(RUNS))

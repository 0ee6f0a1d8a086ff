"""The page for circuits, on a toy whose circuit is known."""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")


import interp
from interp.circuits.circuit import Circuit
from interp.circuits.discovery.find import Finder, find_circuit
from interp.circuits.drawing import BOTH, LEFT, RIGHT, draw_circuit, draw_overlap
from interp.circuits.evaluation.curve_evaluation import faithfulness_curve
from interp.circuits.evaluation.evaluate import CircuitEvaluation
from interp.circuits.evaluation.overlap import compare_circuits
from interp.circuits.files.saved import delete_circuit, save_circuit, saved_circuits
from interp.circuits.positions.drawing import draw_positions
from interp.circuits.positions.narrow import narrow_curve
from interp.circuits.positions.positioned_circuit import PositionedCircuit, marked_positions
from interp.core.files import cache_dir
from interp.engine.edges.graph import Graph
from interp.plots.graphs import faithfulness_figure
from interp.plots.style import FRAME
from interp.results.kept import kept_results
from interp.ui.circuits import graph, search
from interp.ui.shared import jobs, widgets
from tests.pages import named, opened, wait

PAGE = "interp/ui/views/circuits.py"
LINK = {"model": "toy-induction", "task": "toy-induction", "n": "12"}
GRAPH = Graph(n_layers=3, n_heads=4, n_kv_heads=2)


@pytest.fixture
def halves():
    """Model, and the halves the page takes."""
    model = interp.load_model("toy-induction")
    return model, *interp.load_task("toy-induction", model, n=12).split(0.5, seed=0)


def test_without_a_model_one_click_runs_an_example(loaded, monkeypatch) -> None:
    started: list[tuple[str, int, str]] = []

    def start(key, work, unit):
        started.append((key, len(work.args[1]), work.args[2].method))

    monkeypatch.setattr("interp.ui.circuits.search.jobs.start", start)
    at = opened(PAGE)
    assert "Which edges of smollm2" in str([text.value for text in at.markdown]).replace("\\", "")
    named(at.button, "Run the example").click().run()
    assert not at.exception
    assert not at.error
    chosen = at.session_state["selection"]
    assert (chosen.model, chosen.task, chosen.n) == ("smollm2-135m-instruct", "ioi", 16)
    find, _ = interp.load_task("ioi", loaded, n=16).split(0.5, seed=0)
    assert started == [(Finder().key(loaded, find, None), len(find), "EAP-IG-inputs")]
    at.run()
    assert len(started) == 1  # by the click alone


@pytest.mark.long
def test_find_shows_the_package_s_numbers_and_the_link_restores_the_edge(halves) -> None:
    at = wait(opened(PAGE, **LINK), "Find", seconds=90)
    model, find, _ = halves
    found = find_circuit(model, find, Finder())
    rows = at.dataframe[0].value
    made = found.circuit(len(rows))
    assert set(rows["edge"]) == set(made.edges())
    for row in rows.to_dict("records"):
        score = row["estimated effect (of the gap)"]
        assert score == pytest.approx(found.signed[found.graph.edge(row["edge"])], abs=1e-5)
    assert "L1H2->logits" in set(rows["edge"])
    hidden = found.graph.n_edges - made.n_edges
    assert any(f"{hidden} of {found.graph.n_edges} edges" in c.value for c in at.caption)
    assert len(at.get("plotly_chart")) == 1
    named(at.selectbox, "Edge").set_value("L1H2->logits").run()
    assert at.subheader[0].value == "L1H2->logits"
    assert at.query_params["edge"] == "L1H2->logits"
    named(at.selectbox, "Node").set_value("L0H1").run()
    assert at.subheader[0].value == "L0H1"
    assert "edge" not in at.query_params
    again = opened(PAGE, **LINK, edge="L1H2->logits")
    assert again.subheader[0].value == "L1H2->logits"
    assert [one.value for one in again.warning] == [one.value for one in at.warning]
    assert "differ from the exact effect" in at.warning[0].value  # a large completeness gap
    stranger = opened(PAGE, **LINK, edge="L0H0->logits", edges="4")
    assert any("not in the circuit" in one.value for one in stranger.warning)


def test_size_and_share_say_the_same(halves) -> None:
    model, find, _ = halves
    found = find_circuit(model, find, Finder(method="EAP-IG-inputs"))
    at = opened(PAGE, **LINK)
    named(at.number_input, "Edges, at most").set_value(7).run()
    made = found.circuit(7)
    assert len(at.dataframe[0].value) == made.n_edges
    share = named(at.slider, "Share of the total absolute effect")
    assert share.value == round(100 * found.share(made.mask))
    share.set_value(40).run()
    assert at.query_params["edges"] == str(found.edges_for(0.4))
    named(at.button, "As at first").click().run()
    assert "edges" not in at.query_params


@pytest.mark.long
def test_faithfulness_is_the_package_s(halves) -> None:
    model, find, test = halves
    found = find_circuit(model, find, Finder())
    at = wait(opened(PAGE, **LINK, look="faithfulness"), "Evaluate", seconds=90)
    done = faithfulness_curve(model, test, found, random=search.RANDOM)
    rows = at.dataframe[0].value
    assert list(rows["f"]) == pytest.approx(done.faithfulness.tolist())
    shown = " ".join(block.proto.body for block in at.get("html"))
    assert f"{done.cpr().mean:.3f}" in shown
    other = faithfulness_curve(model, test, found, random=0, by="absolute")
    assert f"{other.cmd().mean:.3f}" in shown
    assert list(rows["f by absolute score"]) == pytest.approx(other.faithfulness.tolist())
    for words in ("random circuits on paths", "incompleteness", "minimality", "stability of"):
        assert words in shown
    assert any("counterfactual ablation" in c.value.replace("\\", "") for c in at.caption)


def test_faithfulness_is_of_the_size_looked_at(halves) -> None:
    model, find, _ = halves
    wait(opened(PAGE, **LINK), "Find", seconds=90)
    found = find_circuit(model, find, Finder())
    for edges in (3, 9):
        at = opened(PAGE, **LINK, look="faithfulness", edges=str(edges))
        shown = " ".join(block.proto.body for block in at.get("html"))
        assert f"{found.circuit(edges).n_edges} edges" in shown


@pytest.mark.long
def test_two_kept_circuits_are_compared() -> None:
    at = wait(opened(PAGE, **LINK), "Find", seconds=90)
    named(at.button, "Keep to compare").click().run()
    named(at.number_input, "Edges, at most").set_value(3).run()
    named(at.button, "Keep to compare").click().run()
    at = opened(PAGE, **LINK, look="overlap")
    assert not at.error
    left, right = saved_circuits().values()
    expected = {row.kind: row.jaccard for row in compare_circuits(left, right).rows}
    rows = at.dataframe[0].value
    assert all(expected[row[""]] == row["Jaccard"] for row in rows.to_dict("records"))
    said = [one.value.replace("\\", "") for one in at.caption]
    assert sum("Faithfulness: not measured yet" in one for one in said) == 2
    wait(opened(PAGE, **LINK, look="faithfulness", edges="3"), "Evaluate", seconds=90)
    done = next(one for one in kept_results() if one.kind == "circuit evaluation")
    itself = CircuitEvaluation.load(cache_dir() / done.name).itself
    at = opened(PAGE, **LINK, look="overlap")
    said = " ".join(one.value.replace("\\", "") for one in at.caption)
    assert said.count("not measured yet") == 1
    assert f"Faithfulness: {widgets.value(itself.estimate(0))}, n = {itself.n}; random" in said
    assert said.count("toy-induction · toy-induction") == 2
    named(at.button, "Forget the second").click().run()
    assert "Kept so far: 1" in at.info[0].value


@pytest.mark.parametrize("method", ["ACDC", "ACDC-paper", "learned-mask", "exact"])
@pytest.mark.long
def test_methods_that_decide_themselves_and_exact_ones(method) -> None:
    price = {"ACDC": "0.05", "ACDC-paper": "0.05", "learned-mask": "0.1"}.get(method)
    at = wait(
        opened(PAGE, **LINK, finder=method, **({"price": price} if price else {})),
        "Find",
        seconds=90,
    )
    assert "L1H2->logits" in set(at.dataframe[0].value["edge"])


def test_an_unknown_method_in_a_link_becomes_the_usual_one() -> None:
    at = opened(PAGE, **LINK, finder="luck", removed="air")
    assert at.query_params["finder"] == "EAP-IG-inputs"
    assert named(at.button, "Find")


# -- below the page ------------------------------------------------------------------------


def test_drawing_counts_and_reaches_every_reader_of_a_shared_key() -> None:
    edges = ["input->L0H0.q", "input->L0KV0.k", "L0H0->L1KV0.k", "L1H0->logits", "L1H1->logits"]
    mask = GRAPH.mask([*edges, "input->L1H1.q"])
    signed = np.where(mask, -0.5, 0.0)
    signed[GRAPH.edge("L1H0->logits")] = 1.0
    drawing = draw_circuit(GRAPH, mask, signed, edge="L1H0->logits", node="L1H1")
    assert (drawing.drawn, drawing.hidden) == (6, 0)
    clicks = [
        tuple(data)
        for trace in drawing.figure.data
        if trace.customdata is not None
        for data in trace.customdata
    ]
    key = (0, *GRAPH.edge("L0H0->L1KV0.k"))
    assert clicks.count(key) == 2  # key/value head 0 of layer 1 serves heads 0 and 1
    assert {(1, GRAPH.writer("L1H1"), 0), (1, -1, 0)} <= set(clicks)
    assert {trace.name for trace in drawing.figure.data} >= {"supports", "opposes"}
    few = draw_circuit(GRAPH, mask, signed, most=1)
    assert (few.drawn, few.hidden) == (1, 5)


@pytest.mark.long
def test_on_a_shared_server_circuits_from_prompts_of_others_are_not_listed(monkeypatch) -> None:
    model = interp.load_model("toy-induction")
    task = interp.load_task("toy-induction", model, n=12)
    own = interp.tasks.save_task(replace(task, name="mine"))
    for some in (task, interp.load_task(own.name, model)):
        found = find_circuit(model, some, Finder())
        save_circuit(found.circuit(4))
        save_circuit(found.circuit(3))
    monkeypatch.setattr("interp.ui.shared.offered.is_shared", lambda: True)
    wait(opened(PAGE, **LINK), "Find", seconds=90)
    at = opened(PAGE, **LINK, look="overlap")
    options = named(at.selectbox, "First").options
    assert len(options) == 2
    assert not any(own.name in option for option in options)
    assert not [button for button in at.button if button.label == "Forget the second"]
    link = LINK | {"task": own.name}
    wait(opened(PAGE, **link), "Find", seconds=90)
    at = opened(PAGE, **link, look="overlap")
    assert len(named(at.selectbox, "First").options) == 4


def test_overlap_is_coloured_by_side() -> None:
    left = GRAPH.mask(["input->logits", "L0H0->logits"])
    right = GRAPH.mask(["input->logits", "L0H1->logits"])
    drawing = draw_overlap(GRAPH, left, right, np.ones(GRAPH.shape))
    assert {trace.name for trace in drawing.figure.data} >= {BOTH, LEFT, RIGHT}
    assert drawing.drawn == 3


def test_drawings_can_be_read_in_the_dark_theme() -> None:
    """Names on the page itself take its colour, and no edge is nearly black."""
    mask = GRAPH.mask(["input->L0H0.q", "L0H0->logits"])
    drawn = draw_circuit(GRAPH, mask, np.where(mask, 1.0, 0.0)).figure
    beside = {note.text: note.font.color for note in drawn.layout.annotations}
    assert beside == {"input": None, "logits": None}
    inside = next(trace for trace in drawn.data if trace.mode == "markers+text")
    assert sorted(filter(None, inside.text)) == ["H0"]
    edges = draw_overlap(GRAPH, mask, mask, np.ones(GRAPH.shape)).figure.data
    assert FRAME not in {trace.line.color for trace in edges if trace.mode == "lines"}


def test_a_curve_without_intervals_draws() -> None:
    figure = faithfulness_figure(
        [0.1, 1.0], [0.5, 1.0], low=[-np.inf, 0.9], high=[np.inf, 1.1], random=None, edges=[1, 10]
    )
    assert list(figure.data[1].y) == [0.5, 1.0]
    assert len(figure.data[0].x) == 2


def test_comparison_counts_by_kind_and_chance_is_chance() -> None:
    rng = np.random.default_rng(0)
    left = Circuit(graph=GRAPH, mask=GRAPH.allowed & (rng.random(GRAPH.shape) < 0.4))
    same = {row.kind: row for row in compare_circuits(left, left).rows}
    assert all(row.jaccard == 1 for row in same.values())
    assert same["all edges"].expected.share < 0.05
    kinds = [kind for kind in same if kind.startswith("edges into")]
    assert sum(same[kind].shared for kind in kinds) == left.n_edges
    drawn = [left.random_like(np.random.default_rng(seed)) for seed in range(2)]
    null = {row.kind: row for row in compare_circuits(*drawn).rows}["all edges"].expected
    assert null.low <= null.selected <= null.high
    with pytest.raises(interp.InterpError, match="one graph"):
        compare_circuits(
            left, Circuit(graph=Graph(n_layers=1, n_heads=1, n_kv_heads=1), mask=np.zeros((3, 5)))
        )


def test_the_shelf_keeps_reads_and_forgets() -> None:
    one = Circuit.of(GRAPH, ["input->logits"], name="a/b <c>")
    called = save_circuit(one)
    assert "/" not in called
    assert saved_circuits(GRAPH)[called].hash == one.hash
    assert not saved_circuits(Graph(n_layers=1, n_heads=1, n_kv_heads=1))
    delete_circuit(called)
    assert not saved_circuits()


def test_findings_are_kept_and_cut(halves) -> None:
    model, find, _ = halves
    found = find_circuit(model, find, Finder(method="EAP"))
    again = find_circuit(model, find, Finder(method="EAP", threshold=0.9))  # not an option of EAP
    assert np.array_equal(found.signed, again.signed)
    assert again.provenance == found.provenance
    scores = interp.circuits.score_edges(model, find, method="EAP")
    assert np.array_equal(found.signed, scores.signed)
    for share in (0.3, 0.9, 1.0):
        made = found.circuit(found.edges_for(share))
        assert made.n_edges == found.edges_for(share)
    with pytest.raises(interp.InterpError, match="lower the threshold"):
        found.circuit(threshold=99)
    with pytest.raises(interp.InterpError, match="did you mean 'EAP'"):
        Finder(method="EAPP")


def test_take_away_is_the_circuit(halves) -> None:
    model, find, _ = halves
    found = find_circuit(model, find, Finder())
    made = found.circuit(5)
    rows = graph._rows(found, made)
    assert widgets.csv_text(rows).count("\n") == made.n_edges + 1
    open_ = search.cache.Opened(model=model, task=find, encoded=find.encode(model), key="a key")
    ask = search.Asked(open_=open_, find=find, test=find, finder=Finder(), graph=found.graph)
    told = json.loads(graph._mib(made, ask))
    inside = [name for name, edge in told["edges"].items() if edge["in_graph"]]
    assert len(inside) == made.expanded().n_edges


@pytest.mark.long
def test_a_circuit_by_token_is_the_package_s(halves) -> None:
    model, find, test = halves
    at = wait(opened(PAGE, **LINK), "Find", seconds=90)
    made = find_circuit(model, find, Finder()).circuit(len(at.dataframe[0].value))
    at = wait(opened(PAGE, **LINK, look="tokens", edges=str(made.n_edges)), "Measure", seconds=90)
    places = marked_positions(model, interp.load_task("toy-induction", model, n=12))
    said = []
    done = narrow_curve(
        model, find, test, made, positions=places, random=search.RANDOM,
        progress=lambda done, total: said.append((done, total)),
    )  # fmt: skip
    first, second = (i for i, (done, _) in enumerate(said) if not done)
    assert first == 0
    assert said[second - 1][0] == said[second - 1][1]
    assert said[-1][0] == said[-1][1] == (1 + search.RANDOM) * (1 + len(done.thresholds))
    cut = done.judged.circuits[1 + [f"{t:g}" for t in done.thresholds].index("0.01")]
    rows = at.dataframe[0].value
    assert {f"{row.edge} @ {row.token}" for row in rows.itertuples()} == set(cut.edges())
    shown = " ".join(block.proto.body for block in at.get("html"))
    assert f"{cut.n_edges} of {done.judged.circuits[0].n_edges}" in shown
    named(at.selectbox, "Edge at a token").set_value("L1H2->logits @ last").run()
    assert at.subheader[0].value == "L1H2->logits"
    assert at.query_params["place"] == "last"
    rows = at.dataframe[0].value
    kept = rows[rows["kept"]]
    assert list(kept["token"]) == ["last"]
    effect = done.effects.estimate("L1H2->logits", "last")
    assert kept["effect"].iloc[0] == pytest.approx(effect.mean)
    last = done.thresholds[-1]
    named(at.select_slider, "An edge stays at a token where it is worth this share of the gap")
    at = opened(PAGE, **LINK, look="tokens", edges=str(made.n_edges), worth=f"{last:g}")
    assert len(at.dataframe[0].value) == done.judged.circuits[-1].n_edges


def test_what_attention_carries_is_drawn_from_token_to_token() -> None:
    """A key read at S2 is drawn to where its head writes; not to before, but from elsewhere."""
    places = ("S1", "S2", "last", "elsewhere")
    edges = {
        "input->L0H1.q": ["S2"],
        "input->L0KV1.k": ["S1"],
        "L0H1->L1KV1.k": ["S2"],
        "input->L1KV1.v": ["elsewhere"],
        "L1H2->L2.mlp_out": ["S1", "last"],
        "L2.mlp_out->logits": ["last"],
    }
    circuit = PositionedCircuit.of(GRAPH, places, edges)
    values = np.where(circuit.mask, -0.1, 0.0)
    values[(*GRAPH.edge("L0H1->L1KV1.k"), 1)] = 0.5
    drawing = draw_positions(circuit, values, edge="L0H1->L1KV1.k @ S2")
    assert (drawing.drawn, drawing.hidden) == (7, 0)
    middle = next(x for x in drawing.figure.data if x.customdata is not None)
    texts = list(middle.hovertext)
    assert "<b>L0H1->L1KV1.k @ S2</b>  +0.5000, to last" in texts
    assert not any(text.endswith("+0.5000, to S1") for text in texts)
    carried = [text for text in texts if "input->L1KV1.v" in text]
    assert sorted(text.rpartition(" ")[2] for text in carried) == ["S1", "last"]
    columns = dict(
        zip(drawing.figure.layout.xaxis.ticktext, drawing.figure.layout.xaxis.tickvals, strict=True)
    )
    assert sorted(columns, key=columns.__getitem__) == ["elsewhere", "S1", "S2", "last"]
    few = draw_positions(circuit, values, most=1)
    assert (few.drawn, few.hidden) == (1, 6)


def test_what_is_left_is_told_by_the_pace_of_the_part_under_way(monkeypatch):
    clock = iter([100.0, 110.0])
    job = jobs.BackgroundJob(counted="circuits", ends=[0.0])
    monkeypatch.setattr(jobs.time, "monotonic", lambda: next(clock))
    job.progress(0, 4)
    job.progress(1, 4)
    assert job.words == f"1 of 4 circuits · about {jobs.duration(30)} left"


def test_what_is_left_is_corrected_as_the_run_goes(monkeypatch):
    """Chunks read back take no time and do not count; a machine that slows down is noticed."""
    now = [0.0]
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now[0])
    job = jobs.BackgroundJob()
    job.progress(0, 100)
    for done in range(1, 11):  # kept by an earlier run
        now[0] += 0.001
        job.progress(done, 100)
    now[0] += 2.0
    job.progress(11, 100)
    assert job.left == pytest.approx(2.0 * 89)  # (2.01 / 11) * 89 would be a tenth of it
    for done in range(12, 30):
        now[0] += 10.0
        job.progress(done, 100)
    assert job.left == pytest.approx(10.0 * 71)

import numpy as np
import pytest

from interp.circuits.discovery.acdc import _alive, acdc, prune, visits
from interp.circuits.trials.options import TrialOptions
from interp.circuits.trials.trials import Trials, forward_equivalents, mean_gap
from interp.core.errors import InterpError
from interp.core.metrics import METRICS
from interp.core.prompts import PromptPair, Task
from interp.engine.edges import run as edges
from interp.engine.edges.run import run_edges
from interp.engine.resume import Chunks
from interp.models.compiled import load_compiled
from interp.models.loading import load_model, wrap
from interp.models.toys.circuits import build_toy
from tests.families import random_task, tiny


def toy_task(name, n=6):
    pairs = build_toy(name).pairs[:n]
    return Task(
        name=name,
        pairs=tuple(
            PromptPair(clean=a, corrupted=b, answers=(c,), wrong=(d,)) for a, b, c, d in pairs
        ),
    )


def one_at_a_time(trials, threshold, order, absolute=False):
    """The paper's loop, with nothing skipped: the mask, and every edge's effect."""
    graph, mask = trials.graph, trials.graph.mask()
    ends = trials.values(np.stack([mask, np.zeros_like(mask)])).mean(1)
    current, effects = ends[0], {}
    for edge in visits(graph, order):
        candidate = mask.copy()
        candidate[edge] = False
        value = trials.values(candidate[None]).mean()
        effects[edge] = effect = (current - value) / (ends[0] - ends[1])
        if not (abs(effect) if absolute else effect) >= threshold:
            mask, current = candidate, value
    return mask, effects


KNOWN = {}


def same(result, trials, threshold, order, absolute=False):
    key = trials.model.hash, trials.task.hash, trials.protocol, threshold, order, absolute
    if key not in KNOWN:
        KNOWN[key] = one_at_a_time(trials, threshold, order, absolute)
    mask, effects = KNOWN[key]
    assert result.graph.labels(result.mask) == result.graph.labels(mask)
    for edge, effect in effects.items():
        assert result.effects[edge] == pytest.approx(effect, abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("order", ["reverse", "forward"])
@pytest.mark.parametrize("ablation", ["counterfactual", "zero"])
@pytest.mark.parametrize("batch", [3, 64])
def test_speculation_decides_as_the_plain_loop_does(order, ablation, batch):
    model, task = load_model("toy-refusal"), toy_task("toy-refusal", 2)
    result = acdc(
        model, task, threshold=0.05, order=order, ablation=ablation, batch=batch, resume=False
    )
    same(result, Trials(model, task, TrialOptions(ablation=ablation)), 0.05, order)


@pytest.mark.long
@pytest.mark.parametrize("family", ["llama", "neox", "gemma2"])
def test_dense_graphs_of_other_families_too(family):
    """Grouped heads, parallel blocks, post-norms; many edges stay, so guesses often fail."""
    model = wrap(tiny(family), None, name=family, check=False)
    task = random_task((5,))
    result = acdc(model, task, threshold=0.1, absolute=True, batch=32, resume=False)
    same(result, Trials(model, task), 0.1, "reverse", absolute=True)
    assert 0 < result.mask.sum() < result.graph.n_edges
    assert result.tests > result.decided  # some guesses did fail


@pytest.mark.long
def test_resampled_and_mean_ablation_decide_as_the_plain_loop_does():
    model, whole = load_model("toy-and"), toy_task("toy-and", 24)
    lengths = [len(pair.clean.split()) for pair in whole.pairs]
    common = max(set(lengths), key=lengths.count)
    alike = [p for p, n in zip(whole.pairs, lengths, strict=True) if n == common]
    task = Task(name="alike", pairs=tuple(alike[:2]))
    rest = Task(name="rest", pairs=tuple(p for p in whole.pairs if p not in alike[:2]))
    with pytest.raises(InterpError, match="among the reference"):
        acdc(model, task, threshold=0.05, ablation="mean", reference=task)
    with pytest.raises(InterpError, match="no reference"):
        acdc(model, task, threshold=0.05, ablation="mean")
    result = acdc(
        model, task, threshold=0.05, ablation="mean", reference=rest, batch=16, resume=False
    )
    same(
        result, Trials(model, task, TrialOptions(ablation="mean", reference=rest)), 0.05, "reverse"
    )
    mixed = Task(name="mixed", pairs=(*random_task((5, 5)).pairs,))
    net = wrap(tiny("gpt2"), None, name="gpt2", check=False)
    result = acdc(net, mixed, threshold=0.2, ablation="resample", absolute=True, resume=False)
    same(
        result, Trials(net, mixed, TrialOptions(ablation="resample")), 0.2, "reverse", absolute=True
    )


PLANTED = {
    "reverse": "input->L3KV0.v L3H0->logits",
    "frac_prevs": "input->L0.mlp_out L0.mlp_out->L1KV0.v L1H0->logits",
    "hist": "input->L0H0.q input->L0KV0.k L0H0->L0.mlp_out L0.mlp_out->logits",
    "sort": "input->L0H0.q input->L0KV0.k L0H0->L0.mlp_out L0.mlp_out->L1KV0.k input->L1KV0.v "
    "L1H0->logits",
    "counting_sort": "input->L0KV0.k input->L0KV1.k L0H0->L0.mlp_out L0H1->L0.mlp_out "
    "L0.mlp_out->L1.mlp_out L1.mlp_out->L2.mlp_out L2.mlp_out->logits",
}
"""What each program says must matter, between prompts of one length."""


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("order", ["reverse", "forward"])
def test_compiled_programs_are_recovered_exactly(name, order):
    compiled = load_compiled(name, check=False)
    result = acdc(compiled.model, compiled.task, threshold=0.02, order=order, resume=False)
    assert set(result.graph.labels(result.mask)) == set(PLANTED[name].split())
    assert result.circuit == pytest.approx(result.full, abs=1e-3)


@pytest.mark.parametrize("name", ["toy-induction", "toy-verification", "toy-refusal", "toy-and"])
def test_planted_circuits_are_recovered_at_a_tenth_of_the_calls(name):
    result = acdc(load_model(name), toy_task(name), threshold=0.05, resume=False)
    heads = {part.split(".")[0] for part in build_toy(name).circuit}
    nodes = {part.split("N")[0] if "N" in part else part for part in heads}
    writers = {edge.split("->")[0].split(".")[0] for edge in result.graph.labels(result.mask)}
    assert writers - {"input"} == nodes
    assert 10 * result.calls <= result.graph.n_edges


def test_what_it_cost_is_counted(monkeypatch):
    """Against the engine's own calls and rows, and against rows by brute force."""
    model, task = load_model("toy-and"), toy_task("toy-and")
    trials, batches = Trials(model, task), []
    run, read = {"calls": 0, "rows": 0}, edges._Chunk._read

    def reading(self, readers):
        if readers.stop < len(self.graph.readers):  # the logits are not counted
            run["rows"] += len(self.x)
        return read(self, readers)

    def running(*args, **options):
        run["calls"] += 1
        return run_edges(*args, **options)

    monkeypatch.setattr(edges._Chunk, "_read", reading)
    monkeypatch.setattr("interp.circuits.trials.trials.run_edges", running)

    class Watched:
        graph, exact = trials.graph, trials.exact

        def values(self, masks):
            batches.append(masks.copy())
            return trials.values(masks)

    result = prune(Watched(), threshold=0.05, batch=16)
    assert result.calls == len(batches) == trials.calls
    assert result.tests == sum(map(len, batches)) == trials.tests
    assert result.forwards == pytest.approx(trials.forwards)
    assert result.decided + result.skipped == result.graph.n_edges
    assert result.decided <= result.tests - 2
    rows = 0
    for masks in batches:
        for layer in range(trials.graph.n_layers):
            groups = trials.graph.groups(layer)
            for end in (groups["v"].stop, groups["mlp_out"].stop):
                rows += len({mask[:, :end].tobytes() for mask in masks})
    assert result.forwards == pytest.approx(rows / (2 * trials.graph.n_layers))
    assert run["calls"] == result.calls
    assert run["rows"] / len(task) == pytest.approx(rows)
    one = batches[0][:1]
    assert forward_equivalents(trials.graph, one) == 1
    assert forward_equivalents(trials.graph, np.repeat(one, 5, axis=0)) == 1


def test_only_edges_that_cannot_matter_are_skipped():
    """Under zero ablation a writer without inputs still writes its bias, and its edges count."""
    net = wrap(tiny("gpt2"), None, name="gpt2", check=False)
    for ablation in ("counterfactual", "zero"):
        trials = Trials(net, random_task((5,)), TrialOptions(ablation=ablation))
        graph, mask = trials.graph, trials.graph.mask()
        mask[:, graph.reader("L0.mlp_out")] = False
        mask[graph.writer("L2H3")] = False
        whole = trials.values(mask[None])[0]
        for reader in ("L1KV0.v", "L2KV3.v", "logits"):
            alive = _alive(trials, mask, graph.reader(reader))
            for writer in ("input", "L0.mlp_out"):
                cut = mask.copy()
                cut[graph.edge(f"{writer}->{reader}")] = False
                matters = bool(np.abs(trials.values(cut[None])[0] - whole) > 1e-4)
                assert alive[graph.writer(writer)] == matters, (ablation, writer, reader)


@pytest.mark.long
def test_batch_one_is_the_plain_loop():
    model, task = load_model("toy-and"), toy_task("toy-and", 3)
    plain = acdc(model, task, threshold=0.05, batch=1, resume=False)
    wide = acdc(model, task, threshold=0.05, batch=64, resume=False)
    assert plain.tests == plain.decided + 2 == plain.calls + 1
    assert (plain.mask == wide.mask).all()
    assert wide.calls < plain.calls
    assert str(plain.graph.n_edges) in str(wide)


def test_a_guide_changes_the_cost_only():
    model, task = load_model("toy-refusal"), toy_task("toy-refusal", 4)
    blind = acdc(model, task, threshold=0.05, resume=False)
    guided = acdc(model, task, threshold=0.05, guide=blind, resume=False)
    assert (guided.mask == blind.mask).all()
    assert guided.tests == guided.decided + 2  # no guess failed
    assert guided.calls <= blind.calls


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path):
    model, task = load_model("toy-induction"), toy_task("toy-induction", 4)
    trials = Trials(model, task)

    class Failing:
        graph, exact, left, calls = trials.graph, trials.exact, 3, 0

        def values(self, masks):
            if self.calls == self.left:
                raise KeyboardInterrupt
            self.calls += 1
            return trials.values(masks)

    judge, kept = Failing(), Chunks(folder=tmp_path / "parts", key="a search")
    with pytest.raises(KeyboardInterrupt):
        prune(judge, threshold=0.05, batch=8, chunks=kept)
    judge.left, judge.calls = 10**6, 0
    again = prune(judge, threshold=0.05, batch=8, chunks=kept)
    afresh = prune(trials, threshold=0.05, batch=8)
    assert judge.calls == again.calls - 3
    assert (again.mask == afresh.mask).all()
    np.testing.assert_array_equal(again.effects, afresh.effects)
    assert again.calls == afresh.calls


@pytest.mark.long
def test_kl_is_the_rule_of_the_paper():
    model = wrap(tiny("qwen2"), None, name="qwen2", check=False)
    task = random_task((5,)).with_metric(METRICS["kl"])
    result = acdc(model, task, threshold=0.1, resume=False)
    same(result, Trials(model, task), 0.1, "reverse")


def test_trials_hold_the_clean_and_the_removed_run():
    model = wrap(tiny("llama"), None, name="llama", check=False)
    task = random_task((7, 9, 7, 9))
    trials = Trials(model, task)
    ends, encoded = trials.ends(), task.encode(model)
    for side, prompts in enumerate((encoded.clean, encoded.corrupted)):
        logits = model.last_logits(prompts).double()
        for row, pair in enumerate(task.pairs):
            expected = logits[row, pair.answers[0]] - logits[row, pair.wrong[0]]
            assert ends[side, row] == pytest.approx(float(expected), abs=1e-4)
    other = Trials(model, task, TrialOptions(ablation="resample", seed=1)).ends()[1]
    swapped = [encoded.clean[i] for i in (2, 3, 0, 1)]
    logits = model.last_logits(swapped).double()
    for row, pair in enumerate(task.pairs):
        expected = logits[row, pair.answers[0]] - logits[row, pair.wrong[0]]
        assert other[row] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.long
def test_bad_input():
    model, task = load_model("toy-and"), toy_task("toy-and", 2)
    for wrong in ({"threshold": 0}, {"threshold": 0.1, "batch": 0}):
        with pytest.raises(InterpError, match="threshold"):
            acdc(model, task, **wrong)
    with pytest.raises(InterpError, match="order"):
        acdc(model, task, threshold=0.1, order="sideways")
    with pytest.raises(InterpError, match="ablation"):
        acdc(model, task, threshold=0.1, ablation="none")
    with pytest.raises(InterpError, match="not used"):
        acdc(model, task, threshold=0.1, reference=task)
    with pytest.raises(InterpError, match="no other prompt"):
        Trials(model, task.first(1), TrialOptions(ablation="resample"))
    guide = acdc(load_model("toy-verification"), toy_task("toy-verification", 2), threshold=0.5)
    with pytest.raises(InterpError, match="another graph"):
        acdc(model, task, threshold=0.1, guide=guide)
    equal = Task(
        name="equal",
        pairs=tuple(
            PromptPair(clean=p.clean, corrupted=p.clean, answers=p.answers, wrong=p.wrong)
            for p in task.pairs
        ),
    )
    with pytest.raises(InterpError, match="equal in 2 of 2"):
        acdc(model, equal, threshold=0.1)
    with pytest.raises(InterpError, match="does not distinguish the prompts"):
        mean_gap(np.zeros((2, 3)))

"""Edge scores equal what they estimate: derivatives, exact effects of linear models, sums."""

import dataclasses
import json
import re
from functools import partial

import numpy as np
import pytest
import torch

from interp.circuits.discovery.find import Finder, Findings, find_circuit
from interp.circuits.ground_truth.recovery import recover_edges
from interp.circuits.model_graph import graph_of
from interp.circuits.scoring import score_edges as scoring
from interp.circuits.scoring.edge_scores import EdgeScores
from interp.circuits.scoring.gradient_estimates import RULES, rule_points
from interp.circuits.scoring.score_edges import score_edges
from interp.circuits.trials.options import TrialOptions
from interp.circuits.trials.trials import Trials
from interp.core.errors import InterpError
from interp.core.metrics import METRICS, Metric
from interp.core.prompts import PromptPair, Task
from interp.engine import gradients
from interp.engine.edges import products
from interp.engine.edges.run import run_edges
from interp.engine.edges.writes import edge_runner, mean_writes, record_writes, zero_writes
from interp.engine.forward import Runner
from interp.engine.readout import LogitsOf
from interp.models.loading import load_model
from interp.patching import spec
from interp.patching.activation import activation_patching
from interp.patching.attribution import attribution_patching
from interp.runs.hooks import intervene
from interp.runs.kinds import zero
from interp.runs.pairs import paired_runs
from interp.tasks.registry import load_task
from tests.cli.test_main import run
from tests.families import FAMILIES, random_task, true_double

GROUPED = [
    name
    for name, config in FAMILIES.items()
    if getattr(config(), "num_key_value_heads", 4) < 4
    or name in ("falcon-7b", "falcon-40b", "falcon-11b", "bigcode")
]


@pytest.fixture(autouse=True)
def any_gap(monkeypatch, request):
    """Random models do not tell random prompts apart; only the tests of refusals mind."""
    if "refused" not in request.node.name:
        for module in (scoring, spec):
            monkeypatch.setattr(module, "check_gap", lambda clean, corrupted: None)


def with_steps(method, steps):
    """A method, and the number of its points if it has any."""
    return {"method": method} | ({"steps": steps} if method in scoring.RULED else {})


def linear(model):
    """The model with everything nonlinear made linear, in place of its decoder."""

    def flat(norm):
        if norm is None:
            return None
        return dataclasses.replace(norm, eps=1e14, weight=norm.weight.double() * 1e7)

    blocks = []
    for block in model.decoder.blocks:
        attn = block.attn
        nothing = dataclasses.replace(attn.q, weight=torch.zeros_like(attn.q.weight), bias=None)
        attn = dataclasses.replace(attn, q=nothing, softcap=None)
        mlp = dataclasses.replace(block.mlp, up=None, act=lambda x: x)
        norms = {n: flat(getattr(block, n)) for n in ("ln1", "ln1_post", "ln2", "ln2_post")}
        blocks.append(dataclasses.replace(block, attn=attn, mlp=mlp, **norms))
    decoder = dataclasses.replace(
        model.decoder,
        blocks=tuple(blocks),
        ln_final=flat(model.decoder.ln_final),
        final_softcap=None,
    )
    return dataclasses.replace(model, decoder=decoder)


def derivatives(model, task, graph, carried=None, step=1e-4):
    """(n, writers, readers): central differences of the metric as each edge is let go a little."""
    runs = paired_runs(model, task, "noise")
    runner = edge_runner(model.decoder, graph)
    edges = np.argwhere(graph.allowed)
    masks = torch.tensor(graph.allowed).double().repeat(2 * len(edges), 1, 1)
    for sign, rows in ((1, np.arange(len(edges))), (-1, len(edges) + np.arange(len(edges)))):
        masks[rows, edges[:, 0], edges[:, 1]] += sign * step
    with torch.no_grad():
        base = record_writes(runner, runs.base)
        carried = carried or record_writes(runner, runs.other)
        hidden = run_edges(runner, graph, base, carried, masks)
        which = torch.arange(len(task)).repeat(len(masks))
        readout = LogitsOf(decoder=runner.decoder, hidden=hidden)
        values = task.metric(readout, runs.targets.select(which)).view(2, len(edges), -1)
    found = np.zeros((len(task), *graph.shape))
    found[:, edges[:, 0], edges[:, 1]] = ((values[0] - values[1]) / (2 * step)).T.numpy()
    return found


@pytest.mark.parametrize("expand_kv", [False, True])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_eap_is_the_derivative_of_the_exact_effect(doubles, name, expand_kv):
    """In every family, q/k norms, post-norms, parallel blocks and grouped heads included."""
    model, task = doubles(name), random_task(lengths=(6, 8))
    with true_double():  # a router in float32 would hide the small differences of runs
        scores = score_edges(model, task, expand_kv=expand_kv, per_prompt=True)
        expected = derivatives(model, task, scores.graph)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(scores.per_prompt, expected, atol=1e-6)
    assert not scores.signed[~scores.graph.allowed].any()


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("name", ["gpt2", "neox", "gemma2", "olmo2"])
def test_other_ablations_are_derivatives_too(doubles, name, ablation):
    model, task = doubles(name), random_task(lengths=(6, 8, 8, 6))
    rest = random_task(lengths=(5, 9, 7), seed=4)
    options = {"mean": {"reference": rest}, "resample": {"seed": 3}}.get(ablation, {})
    scores = score_edges(model, task, ablation=ablation, per_prompt=True, **options)
    runner, encoded = Runner(model.decoder), task.encode(model)
    carried = {
        "zero": lambda: zero_writes(runner),
        "mean": lambda: mean_writes(runner, [row(rest.encode(model)) for row in (clean, other)]),
        # Of two prompts of a length, each takes the other.
        "resample": lambda: record_writes(runner, [encoded.clean[i] for i in (3, 2, 1, 0)]),
    }[ablation]()
    expected = derivatives(model, task, scores.graph, carried)
    np.testing.assert_allclose(scores.per_prompt, expected, atol=1e-6 * np.abs(expected).max())
    assert ablation in scores.protocol
    assert ("random" in scores.protocol) == (ablation == "mean")


def clean(encoded):
    return encoded.clean


def other(encoded):
    return encoded.corrupted


@pytest.mark.long
def test_one_mean_for_scores_and_trials(doubles):
    """The exact effect of an edge is what evaluation gives for the circuit without it."""
    model, task = doubles("qwen2"), random_task(lengths=(6, 8))
    for ablation in ("zero", "mean"):
        options = {"ablation": ablation}
        if ablation == "mean":
            options["reference"] = random_task(lengths=(5, 9), seed=4)
        exact = score_edges(model, task, method="exact", per_prompt=True, **options)
        trials = Trials(model, task, TrialOptions(**options))
        masks = np.repeat(exact.graph.allowed[None], 5, axis=0)
        edges = np.argwhere(exact.graph.allowed)[::40][:4]
        masks[(np.arange(4), *edges.T)] = False
        values = trials.values(masks)
        found = exact.per_prompt[:, edges[:, 0], edges[:, 1]].T
        np.testing.assert_allclose(found, values[-1] - values[:-1], atol=1e-6)


def test_means_over_evaluated_prompts_are_refused(family_models):
    model, task = family_models["llama"], random_task()
    for method in ("EAP", "exact"):
        with pytest.raises(InterpError, match="no reference prompts"):
            score_edges(model, task, method=method, ablation="mean")
        with pytest.raises(InterpError, match="8 evaluated prompts"):
            score_edges(model, task, method=method, ablation="mean", reference=task)
    with pytest.raises(InterpError, match="not used"):
        score_edges(model, task, ablation="zero", reference=task)


def test_zero_ablation_takes_no_pass_more(doubles):
    scores = score_edges(doubles("llama"), random_task(), ablation="zero")
    assert (scores.passes.forwards, scores.passes.backwards) == (2, 1)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "qwen3", "gemma2", "olmo2"])
def test_every_method_is_exact_in_a_linear_model(doubles, name):
    """Norms frozen, attention uniform, neurons linear: all estimates are the exact effects."""
    model, task = linear(doubles(name)), random_task(lengths=(6, 6, 8))
    exact = score_edges(model, task, method="exact", per_prompt=True)
    scale = np.abs(exact.per_prompt).max()
    assert scale > 1e-3
    for method in ("EAP", "clean-corrupted", "EAP-IG-inputs", "EAP-IG-activations"):
        scores = score_edges(model, task, **with_steps(method, 2), per_prompt=True)
        np.testing.assert_allclose(scores.per_prompt, exact.per_prompt, atol=1e-6 * scale)
        assert abs(scores.completeness_gap) < 1e-6


def test_edges_of_a_node_add_up_to_its_attribution(family):
    """Heads (through a post-norm too), MLPs and the input, prompt by prompt."""
    task = random_task()
    scores = score_edges(family, task, per_prompt=True)
    sums, graph = scores.per_prompt.sum(2), scores.graph
    node = partial(attribution_patching, family, task, direction="noise")
    heads = node().effects
    mlps = node(site="mlp_out", by=("layer",)).effects
    stream = node(site="resid_pre", by=("layer",), layers=[0]).effects
    for layer in range(family.n_layers):
        np.testing.assert_allclose(sums[:, graph.heads(layer)], heads[:, layer], atol=2e-5)
        np.testing.assert_allclose(sums[:, graph.mlp(layer)], mlps[:, layer], atol=2e-5)
    np.testing.assert_allclose(sums[:, 0], stream[:, 0], atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "neox", "gemma2"])
@pytest.mark.long
def test_integrated_gradients_become_complete(doubles, name):
    """The input's edges add up to the whole gap, the better the more points."""
    model, task = doubles(name), random_task()
    gaps = [
        abs(score_edges(model, task, method="EAP-IG-inputs", steps=n).completeness_gap)
        for n in (1, 6, 48)
    ]
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2]
    assert gaps[2] < 5e-3
    gauss = score_edges(model, task, method="EAP-IG-inputs", steps=16, rule="gauss")
    assert abs(gauss.completeness_gap) < 1e-3
    summed = gauss.outgoing[0]
    assert summed - 1 == pytest.approx(gauss.completeness_gap, abs=1e-9)


@pytest.mark.long
def test_a_large_completeness_gap_is_warned_of_wherever_it_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    model = load_model("toy-verification")
    task = load_task("toy-verification", model, n=8)
    gap = score_edges(model, task, method="EAP")
    assert gap.completeness_gap == pytest.approx(-0.75, abs=0.01)
    assert "differ from the exact effect by 75% of the gap" in gap.warning
    found = find_circuit(model, task, Finder(method="EAP"))
    for told in (gap.protocol, found.protocol, found.circuit(5).method):
        assert f"completeness gap -75.00% (warning: {gap.warning})" in told
    assert Findings.load(found.save(tmp_path / "f").with_suffix("")).warning == gap.warning
    toy = ("--model", "toy-verification", "--task", "toy-verification", "--n", 8, "--half", "all")
    out = run("circuit", "find", *toy, "--method", "EAP", "--json", tmp_path / "f.json")
    assert f"Warning: {gap.warning}." in out
    assert json.loads((tmp_path / "f.json").read_text())["warning"] == gap.warning
    small = score_edges(model, task, method="EAP-IG-inputs", steps=20)
    assert abs(small.completeness_gap) < 0.1
    assert small.warning == ""
    assert "warning" not in small.protocol
    assert score_edges(model, task, method="exact").warning == ""


@pytest.mark.long
@pytest.mark.parametrize("name", ["gpt2", "neox", "qwen3", "gemma2", "olmo2"])
def test_activation_paths_add_up_to_exact_node_effects(doubles, name):
    """Each writer's own path integral: its edges sum to its activation-patching effect."""
    model, task = doubles(name), random_task(lengths=(6, 8))
    scores = score_edges(model, task, method="EAP-IG-activations", steps=12, rule="gauss")
    kwargs = dict(direction="noise", cache=False)
    heads = activation_patching(model, task, **kwargs).values
    mlps = activation_patching(model, task, site="mlp_out", by=("layer",), **kwargs).values
    graph = scores.graph
    found = np.array([scores.outgoing[graph.heads(layer)] for layer in range(model.n_layers)])
    atol = 2e-3 * np.abs(heads).max()
    np.testing.assert_allclose(found, heads, atol=atol)
    outputs = np.array([scores.outgoing[graph.mlp(layer)] for layer in range(model.n_layers)])
    np.testing.assert_allclose(outputs, mlps, atol=atol)
    worst = max(abs(scores.outgoing[0] - 1), abs(found - heads).max(), abs(outputs - mlps).max())
    assert scores.completeness_gap == pytest.approx(worst, abs=1e-6)


def test_heads_together_are_one_path(doubles):
    model, task = doubles("llama"), random_task(lengths=(6, 8))
    scores = score_edges(
        model, task, method="EAP-IG-activations", steps=12, rule="gauss", together=True
    )
    exact = activation_patching(model, task, by=("layer",), direction="noise", cache=False).values
    for layer in range(model.n_layers):
        summed = scores.outgoing[scores.graph.heads(layer)].sum()
        assert summed == pytest.approx(exact[layer], abs=2e-3)
    assert scores.passes.backwards == 12 * (1 + 2 * model.n_layers)


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_scores_are_sums_over_copies(doubles, name):
    model, task = doubles(name), random_task(lengths=(6, 8))
    for method in ("EAP", "EAP-IG-inputs", "EAP-IG-activations"):
        options = with_steps(method, 2)
        native = score_edges(model, task, **options)
        copies = score_edges(model, task, **options, expand_kv=True, per_prompt=True)
        assert copies.graph.n_edges > native.graph.n_edges
        # OLMoE's router computes in float32.
        close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        close(copies.to_native().signed, native.signed)
        close(copies.to_native().stderr, native.stderr)


@pytest.mark.parametrize("name", ["gpt2", "neox", "gemma2", "olmo2"])
@pytest.mark.parametrize(
    "method",
    [
        "EAP",
        "EAP-IG-inputs",
        pytest.param("EAP-IG-activations", marks=pytest.mark.long),
        "information-flow-routes",
        "exact",
    ],
)
def test_batches_and_budgets_change_nothing(doubles, name, method):
    """One batch, many batches, graphs rebuilt and products in slivers; each prompt on its own.

    Less than one prompt takes is refused, and what the refusal says is enough is enough.
    """
    model, task = doubles(name), random_task(lengths=(9, 6, 9, 7))
    task = task if method != "exact" else task.first(2)
    options = with_steps(method, 2) | {"per_prompt": True}
    whole = score_edges(model, task, **options)
    # A budget of a few prompts; then one that not even one prompt's graph fits in.
    small = score_edges(model, task, budget_gb=1e-3, **options)
    assert method == "exact" or small.passes.batches > 1
    np.testing.assert_allclose(small.per_prompt, whole.per_prompt, atol=1e-6)
    np.testing.assert_allclose(small.signed, whole.signed, atol=1e-9)
    if method != "exact":
        with pytest.raises(InterpError, match="needs a budget of") as refusal:
            score_edges(model, task, budget_gb=2e-5, **options)
        enough = float(re.search(r"budget_gb=([\d.e-]+)", refusal.value.do).group(1))
        least = score_edges(model, task, budget_gb=enough, **options)
        assert method == "information-flow-routes" or least.passes.rebuilt > 0
        np.testing.assert_allclose(least.per_prompt, whole.per_prompt, atol=1e-6)
    for i, pair in enumerate(task.pairs):
        alone = score_edges(model, Task(name="one", pairs=(pair,)), **options)
        np.testing.assert_allclose(alone.per_prompt[0], whole.per_prompt[i], atol=1e-6)


def test_products_never_hold_more_than_their_room(doubles, monkeypatch):
    """The matrix of tokens x writers x d_model is cut to the room that is left."""
    model, task = doubles("llama"), random_task(lengths=(40,) * 3)
    widest, written = [], products.Products._writes

    def spy(self, at, one):
        found = written(self, at, one)
        widest.append((found.numel() * found.element_size(), self.budget))
        return found

    monkeypatch.setattr(products.Products, "_writes", spy)
    for budget in (1.0, 5e-3, 1.1e-3):
        widest.clear()
        score_edges(model, task, budget_gb=budget)
        assert all(size <= room for size, room in widest)
    assert len(widest) > 3


ABLATED = {
    "counterfactual": {},
    "resample": {"seed": 1},
    "zero": {},
    "mean": {"reference": random_task(lengths=(5, 8), seed=4)},
}
PASSES = {
    "EAP": (2, 1),
    "clean-corrupted": (2, 2),
    "EAP-IG-inputs": (2 + 4, 4),
    "information-flow-routes": (1, 0),
}


@pytest.mark.parametrize(
    ("method", "ablation", "rule"),
    [
        *(("EAP", ablation, "midpoint") for ablation in ABLATED),
        *(("EAP-IG-inputs", ablation, rule) for ablation in ABLATED for rule in RULES),
        ("clean-corrupted", "counterfactual", "midpoint"),
        ("information-flow-routes", "counterfactual", "midpoint"),
    ],
)
def test_passes_are_as_few_as_promised(doubles, engine_calls, method, ablation, rule):
    """Counted by the calls of a block and of autograd, not by the counter."""
    model, (forwards, backwards) = doubles("gemma2"), PASSES[method]
    options = with_steps(method, 4) | {"rule": rule, "ablation": ablation} | ABLATED[ablation]
    scores = score_edges(model, random_task((9, 9, 7, 7)), **options)
    means = 1 if ablation == "mean" else 0
    # A rule that has an end of the path among its points spares a run; "at most" is kept.
    last = ablation in ("counterfactual", "resample")
    forwards -= {"left": 1, "right": last, "trapezoid": 1 + last}.get(rule, 0)
    assert scores.passes.batches == 1
    assert engine_calls["block"] == forwards * model.n_layers
    # One call per layer, and one through the unembedding.
    assert engine_calls["grad"] == backwards * (model.n_layers + 1)
    assert (scores.passes.forwards, scores.passes.backwards) == (forwards + means, backwards)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("ablation", ABLATED)
def test_passes_of_activation_paths_are_those_declared(doubles, engine_calls, ablation, together):
    """4 + W (steps + 1) forward and W steps backward, layers before a writer's left out."""
    model, steps = doubles("llama"), 2
    scores = score_edges(
        model, random_task((9, 9)), method="EAP-IG-activations", steps=steps, ablation=ablation,
        together=together, **ABLATED[ablation],
    )  # fmt: skip
    graph, means = scores.graph, 1 if ablation == "mean" else 0
    heads = 1 if together else graph.n_heads
    paths = 1 + graph.n_layers * (heads + 1)
    assert scores.passes.forwards == 4 + means + paths * (steps + 1)
    assert scores.passes.backwards == paths * steps
    layers = range(model.n_layers)
    blocks = model.n_layers + sum(heads * (model.n_layers - layer) for layer in layers)
    blocks += sum(model.n_layers - layer - 1 for layer in layers)
    assert engine_calls["block"] == 4 * model.n_layers + (steps + 1) * blocks
    assert engine_calls["grad"] == steps * (blocks + paths)


@pytest.fixture
def engine_calls(monkeypatch):
    """How often a block was run and autograd called."""
    calls = {"block": 0, "grad": 0}

    def counted(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(gradients, "block_sites", counted("block", gradients.block_sites))
    monkeypatch.setattr(torch.autograd, "grad", counted("grad", torch.autograd.grad))
    return calls


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_one_token_tells_where_a_path_of_constants_ends(doubles, name, ablation):
    """The completeness gap against a whole run without any of the input's edges."""
    model, task = doubles(name), random_task(lengths=(6, 8))
    options = ABLATED[ablation] | {"ablation": ablation}
    for method, steps in (("EAP", 1), ("EAP-IG-inputs", 3)):
        scores = score_edges(model, task, **with_steps(method, steps), **options)
        trials = Trials(model, task, TrialOptions(**options))
        without = trials.graph.mask()
        without[0] = False
        full, end = trials.values(np.stack([trials.graph.mask(), without])).mean(1)
        expected = scores.outgoing[0] - (full - end) / scores.gap
        assert scores.completeness_gap == pytest.approx(expected, abs=1e-5)


def test_exact_is_one_run_per_edge(doubles):
    """Against edges taken one at a time, prompt by prompt, by the definition."""
    model, task = doubles("qwen2"), random_task(lengths=(6, 8))
    exact = score_edges(model, task, method="exact", per_prompt=True)
    runs, graph = paired_runs(model, task, "noise"), exact.graph
    runner = Runner(model.decoder)
    for edge in ("input->L0H1.q", "L0H3->L1KV1.k", "L1.mlp_out->L2.mlp_out", "L2H0->logits"):
        mask = graph.mask()
        mask[graph.edge(edge)] = False
        for i in range(len(task)):
            base, other = (record_writes(runner, [r[i]]) for r in (runs.base, runs.other))
            with torch.no_grad():
                both = torch.tensor(np.stack([graph.allowed, mask]))
                hidden = run_edges(runner, graph, base, other, both)
                readout = LogitsOf(decoder=model.decoder, hidden=hidden)
                full, cut = task.metric(readout, runs.targets.select(torch.tensor([i, i])))
            found = exact.per_prompt[(i, *graph.edge(edge))]
            assert found == pytest.approx(float(full - cut), abs=1e-6)


@pytest.mark.long
def test_denoising_starts_from_the_corrupted_run(doubles):
    """Turning both the runs and the answers round turns noise into denoise."""
    model, task = doubles("qwen3"), random_task()
    turned = Task(
        name="turned",
        pairs=tuple(
            PromptPair(clean=p.corrupted, corrupted=p.clean, answers=p.wrong, wrong=p.answers)
            for p in task.pairs
        ),
    )
    for method in ("EAP", "EAP-IG-inputs", "EAP-IG-activations", "exact"):
        options = with_steps(method, 2)
        noise = score_edges(model, task, **options)
        denoise = score_edges(model, turned, direction="denoise", **options)
        np.testing.assert_allclose(noise.signed, denoise.signed, atol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "neox", "gemma2"])
def test_flow_shares_by_a_slow_loop(doubles, name):
    model, task = doubles(name), random_task(lengths=(5, 7))
    scores = score_edges(model, task, method="information-flow-routes", per_prompt=True)
    runs, graph, decoder = paired_runs(model, task, "noise"), scores.graph, model.decoder
    runner = Runner(decoder)
    for i, prompt in enumerate(runs.base):
        layout, x = gradients.rows_of(runner, [prompt])
        run = gradients.forward(runner, x, layout, kept=frozenset({"z", "mlp_out", "attn_raw"}))
        writes = {"input": x}
        for layer, block in enumerate(decoder.blocks):
            raw, per = run.site(layer, "attn_raw"), block.attn.d_head
            for head in range(model.n_heads):
                part = run.site(layer, "z")[:, head] @ block.attn.o.weight[per * head :][:per]
                if block.ln1_post is not None:
                    part = block.ln1_post.share(part, raw)
                writes[f"L{layer}H{head}"] = part
            writes[f"L{layer}.mlp_out"] = run.site(layer, "mlp_out")
        for reader, label in enumerate(graph.readers):
            layer = int(graph.reader_layer[reader])
            read = run.site(layer, "resid_pre") if layer < model.n_layers else run.entering[-1]
            if label.endswith("mlp_out") and not model.parallel:
                block = decoder.blocks[layer]
                raw = run.site(layer, "attn_raw")
                read = read + (raw if block.ln1_post is None else block.ln1_post(raw))
            close = np.zeros((len(graph.writers), len(prompt)))
            for writer in np.flatnonzero(graph.allowed[:, reader]):
                write = writes[graph.writers[writer]]
                for token in range(len(prompt)):
                    whole, rest = read[token], read[token] - write[token]
                    close[writer, token] = max(0, float(whole.abs().sum() - rest.abs().sum()))
            shares = close / close.sum(0)
            expected = shares[:, -1] if label == "logits" else shares.mean(1)
            np.testing.assert_allclose(scores.per_prompt[i, :, reader], expected, atol=1e-6)
    assert scores.unit == "share"


def test_statistics_are_those_of_the_prompts(family_models):
    scores = score_edges(family_models["llama"], random_task(), per_prompt=True)
    values = scores.per_prompt.astype(float)
    gaps = (scores.clean - scores.corrupted)[:, None, None]
    signed = values.mean(0) / gaps.mean()
    residual = values - signed * gaps
    stderr = residual.std(0, ddof=1) / abs(gaps.mean()) / 2
    np.testing.assert_allclose(scores.signed, signed, atol=1e-6)
    np.testing.assert_allclose(
        scores.absolute, np.abs(values).mean(0) / abs(gaps.mean()), atol=1e-6
    )
    np.testing.assert_allclose(scores.stderr, stderr, atol=1e-5)
    assert (scores.absolute >= np.abs(scores.signed) - 1e-9).all()
    drawn = scores.resampled(np.random.default_rng(0))
    places = np.random.default_rng(0).integers(4, size=4)
    expected = values[places].mean(0) / gaps[places].mean()
    np.testing.assert_allclose(drawn.signed, expected, atol=1e-6)


def test_ranking_table_and_files(family_models, tmp_path):
    model = family_models["gemma2"]
    scores = score_edges(model, random_task(), method="EAP-IG-inputs", steps=2, per_prompt=True)
    top = scores.top(3)
    assert top[0].value == scores.signed[scores.graph.allowed].max()
    assert top[0].value == scores.value(top[0].label)
    strongest = scores.top(1, by="absolute")[0]
    assert abs(strongest.value) == np.abs(scores.signed).max()
    frame = scores.to_dataframe()
    assert len(frame) == scores.graph.n_edges == top[0].of
    assert frame.set_index("edge").loc[top[1].label, "value"] == top[1].value
    loaded = EdgeScores.load(scores.save(tmp_path / "scores"))
    for name in ("signed", "absolute", "stderr", "per_prompt", "clean", "corrupted"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(scores, name))
    assert loaded.protocol == scores.protocol
    assert loaded.graph == scores.graph
    assert loaded.provenance == scores.provenance
    plain = score_edges(model, random_task())
    with pytest.raises(InterpError, match="per_prompt=True"):
        plain.resampled(np.random.default_rng(0))
    for word in ("gemma", "midpoint rule with 2 points", "noise", "counterfactual", "n=4"):
        assert word == "gemma" or word in scores.protocol
    assert "linearised" in scores.protocol


@pytest.mark.parametrize("rule", RULES)
def test_rules_integrate_a_line_and_their_weights_are_one(rule):
    points = rule_points(rule, 4)
    assert sum(weight for _, weight in points) == pytest.approx(1)
    line = sum(weight * alpha for alpha, weight in points)
    assert line == pytest.approx({"left": 0.375, "right": 0.625}.get(rule, 0.5))


def test_trapezoid_of_two_points_is_clean_corrupted(doubles):
    model, task = doubles("llama"), random_task()
    both = score_edges(model, task, method="clean-corrupted")
    path = score_edges(model, task, method="EAP-IG-inputs", steps=2, rule="trapezoid")
    np.testing.assert_allclose(both.signed, path.signed, atol=1e-12)
    assert path.passes.forwards == 2


def test_saturated_attention_stays_finite_and_hides_from_gradients(doubles):
    """Queries a million times too long: EAP is blind to query edges, exact effects are not."""
    model, task = doubles("llama"), random_task(lengths=(8,) * 6)
    blocks = [
        dataclasses.replace(
            block,
            attn=dataclasses.replace(
                block.attn, q=dataclasses.replace(block.attn.q, weight=block.attn.q.weight * 1e6)
            ),
        )
        for block in model.decoder.blocks
    ]
    hard = dataclasses.replace(
        model, decoder=dataclasses.replace(model.decoder, blocks=tuple(blocks))
    )
    found = {
        method: score_edges(hard, task, **with_steps(method, 3))
        for method in ("EAP", "EAP-IG-inputs", "EAP-IG-activations", "exact")
    }
    assert all(np.isfinite(scores.signed).all() for scores in found.values())
    queries = found["EAP"].graph.reader_kind == "q"
    assert np.abs(found["EAP"].signed[:, queries]).max() < 1e-6
    assert np.abs(found["exact"].signed[:, queries]).max() > 0.05


@pytest.mark.long
def test_planted_edges_of_the_toy():
    """Previous-token head into the induction head's keys, and that head into the logits."""
    model, task = load_model("toy-induction"), load_task("toy-induction").first(12)
    exact = score_edges(model, task, method="exact")
    for edge in ("L0H1->L1KV1.k", "L1H2->logits"):
        assert exact.value(edge) == pytest.approx(1, abs=0.05)
    ig = score_edges(model, task, method="EAP-IG-activations", steps=20)
    assert ig.value("L1H2->logits") == pytest.approx(1, abs=0.05)
    assert {edge.label for edge in ig.top(3)} >= {"L1H2->logits", "L0H1->L1KV1.k"}


def test_equal_prompts_are_refused_before_any_pass(family_models, monkeypatch):
    task = random_task()
    same = dataclasses.replace(task.pairs[1], corrupted=task.pairs[1].clean)
    mixed = Task(name="mixed", pairs=(task.pairs[0], same))
    monkeypatch.setattr(Runner, "mlp_out", None)
    monkeypatch.setattr(gradients, "block_sites", None)
    for method in scoring.METHODS:
        with pytest.raises(InterpError, match="equal in 1 of 2, first in pair 1"):
            score_edges(family_models["llama"], mixed, method=method)


def test_no_gap_is_refused_before_long_runs(family_models, monkeypatch):
    """Two passes tell; the run per edge is not begun."""
    model, pair = family_models["llama"], random_task().pairs[0]
    turned = dataclasses.replace(pair, answers=pair.wrong, wrong=pair.answers)
    none = Task(name="none", pairs=(pair, turned))
    monkeypatch.setattr("interp.circuits.scoring.exact_edges.run_edges", None)
    monkeypatch.setattr("interp.circuits.scoring.gradient_estimates.metric_gradient", None)
    for method in ("exact", "EAP-IG-activations"):
        with pytest.raises(InterpError, match="does not distinguish the prompts"):
            score_edges(model, none, method=method)


def test_metrics_without_gradient_are_refused_with_advice(family_models, monkeypatch):
    monkeypatch.setattr(scoring, "check_gap", lambda clean, corrupted: None)
    model, task = family_models["qwen2"], random_task()
    kl = task.with_metric(METRICS["kl"])
    with pytest.raises(InterpError, match="EAP-IG-inputs"):
        score_edges(model, kl)
    for options in (
        {"method": "EAP-IG-inputs"},
        {"method": "clean-corrupted"},
        {"direction": "denoise"},
    ):
        assert np.abs(score_edges(model, kl, **options).signed).max() > 1e-3
    constant = Metric(name="flat", unit="", function=lambda r, t: 0 * r.all().sum(1))
    with pytest.raises(InterpError, match="gradient is zero"):
        score_edges(model, task.with_metric(constant))
    hard = Metric(name="hits", unit="", function=lambda r, t: (r.all().argmax(1) > 9).double())
    with pytest.raises(InterpError, match="not a differentiable function of the logits"):
        score_edges(model, task.with_metric(hard))


def test_bad_requests_are_refused(family_models, monkeypatch):
    monkeypatch.setattr(scoring, "check_gap", lambda clean, corrupted: None)
    model, task = family_models["llama"], random_task()
    for options, words in (
        ({"method": "EAP-IG"}, "EAP-IG-inputs"),
        ({"ablation": "median"}, "mean"),
        ({"ablation": "zero", "direction": "denoise"}, "clean run"),
        ({"ablation": "mean", "method": "clean-corrupted"}, "clean run"),
        ({"direction": "up"}, "denoise"),
        ({"method": "EAP-IG-inputs", "rule": "simpson"}, "midpoint"),
        ({"method": "EAP-IG-inputs", "steps": 0}, "too few"),
        ({"method": "EAP-IG-inputs", "rule": "trapezoid", "steps": 1}, "too few"),
        ({"budget_gb": 0}, "greater than 0"),
        ({"method": "information-flow-routes", "direction": "denoise"}, "clean run"),
        ({"cancelled": lambda: True}, "stopped after 0"),
    ):
        with pytest.raises(InterpError, match=words):
            score_edges(model, task, **options)
    with pytest.raises(InterpError, match="no such ranking"):
        score_edges(model, task).top(by="size")
    with intervene(model, [zero("L0H0")]), pytest.raises(InterpError, match="inside intervene"):
        score_edges(model, task)
    with pytest.raises(InterpError, match="known family"):
        score_edges(dataclasses.replace(model, decoder=None), task)


@pytest.mark.parametrize("method", scoring.METHODS)
def test_no_method_takes_an_option_that_it_does_not_use(family_models, method):
    """It would be recorded as if it had been used; a used one is in the call, no other is."""
    model, task = family_models["llama"], random_task(lengths=(5, 5))
    given = {"steps": 3, "rule": "gauss", "together": True}
    used = {
        "EAP-IG-inputs": {"steps", "rule"},
        "EAP-IG-activations": {"steps", "rule", "together"},
    }.get(method, set())
    for name, value in given.items():
        if name not in used:
            with pytest.raises(InterpError, match=f"{name}=.*not used"):
                score_edges(model, task, method=method, **{name: value})
    for steps, rule in ((-50, "midpoint"), (5, "nonsense")):
        with pytest.raises(InterpError):
            score_edges(model, task, method=method, steps=steps, rule=rule)
    call = score_edges(model, task, **{n: given[n] for n in used}, method=method).provenance.call
    assert {name for name in given if f"{name}=" in call} == used
    if method == "information-flow-routes":
        assert "ablation" not in call
        for ablation in ("zero", "mean", "resample"):
            with pytest.raises(InterpError, match="no edge is removed"):
                score_edges(model, task, method=method, ablation=ablation)
        with pytest.raises(InterpError, match="not used"):
            score_edges(model, task, method=method, reference=task)


def test_flow_shares_do_not_depend_on_what_circuits_are_run_with(tmp_path, monkeypatch):
    """A search or a recovery with another ablation scores the flow all the same."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    model, task = load_model("toy-and"), load_task("toy-and").first(4)
    plain = find_circuit(model, task, Finder(method="information-flow-routes"))
    zeroed = Finder(method="information-flow-routes", ablation="zero")
    np.testing.assert_array_equal(find_circuit(model, task, zeroed).signed, plain.signed)
    found = recover_edges(model, task, methods=["information-flow-routes"], ablation="zero")
    assert found.found[0].note == ""


def test_graph_follows_the_model(family):
    scores = score_edges(family, random_task(lengths=(6, 6)))
    assert scores.graph == graph_of(family)
    assert scores.signed.shape == scores.graph.shape


def test_a_taped_run_keeps_what_is_asked_for(family_models):
    """Neuron activations are four times as wide as the stream: not kept where nobody asks."""
    runner = Runner(family_models["gpt2"].decoder)
    layout, x = gradients.rows_of(runner, [(1, 2, 3)])
    options = {"kept": frozenset({"z"}), "wanted": frozenset({"q", "read"}), "grad": True}
    run = gradients.forward(runner, x, layout, **options)
    assert [set(sites) for sites in run.sites] == [{"z", "q", "read"}] * 3
    whole = gradients.forward(runner, x, layout, grad=True)
    assert {"post", "mlp_out", "k"} <= set(whole.sites[0])
    final = torch.ones_like(x)
    found, expected = (
        dict(gradients.backward(runner, one, final, ("q", "read"))) for one in (run, whole)
    )
    for layer, sites in found.items():
        for name, gradient in sites.items():
            torch.testing.assert_close(gradient, expected[layer][name], atol=0, rtol=0)
    assert [set(sites) for sites in run.sites] == [{"z"}] * 3  # let go on the way back

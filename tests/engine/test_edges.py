"""Edge runs: the theorems, a slow reference in plain loops, and hooks through the bridge."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.circuits.model_graph import graph_of
from interp.core.components import Component
from interp.core.errors import InterpError
from interp.core.metrics import Logits
from interp.engine.edges import run as engine
from interp.engine.edges.run import run_edges
from interp.engine.edges.writes import (
    edge_runner,
    mean_writes,
    record_writes,
    with_others_at,
    zero_writes,
)
from interp.engine.forward import attention_pattern
from interp.engine.layout import Layout
from interp.engine.restart import final_hidden
from interp.models.loading import wrap
from interp.patching.path import path_patching
from interp.runs.pairs import paired_runs
from tests.families import FAMILIES, random_task, tiny, true_double

LENGTHS = (9, 7, 9)


@pytest.fixture(scope="module", params=list(FAMILIES))
def wide(request):
    """A family in float64."""
    with true_double():
        return wrap(tiny(request.param, torch.float64), name=f"wide-{request.param}")


class Case:
    """A model, a task, its two plain runs."""

    def __init__(self, model, *, expand_kv=False, lengths=LENGTHS, neurons=()):
        self.model, self.task = model, random_task(lengths)
        self.graph = graph_of(model, expand_kv=expand_kv, neurons=neurons)
        self.runs = paired_runs(model, self.task, "noise")
        self.runner = edge_runner(model.decoder, self.graph)
        self.base = record_writes(self.runner, self.runs.base)
        self.other = record_writes(self.runner, self.runs.other)

    def logits(self, masks, *, other=None, start=True, **options):
        """(masks, prompts, vocabulary)."""
        hidden = run_edges(
            self.runner,
            self.graph,
            self.base,
            self.other if other is None else other,
            torch.as_tensor(np.asarray(masks)) if not torch.is_tensor(masks) else masks,
            start=self.runs.differ if start else None,
            **options,
        )
        return self.runner.decoder.logits(hidden).unflatten(0, (-1, len(self.task)))

    def constant(self, ablation):
        """What edges carry under zero ablation, or under that of the mean of the corrupted runs."""
        if ablation == "zero":
            return zero_writes(self.runner)
        return mean_writes(self.runner, [self.runs.other[:2], self.runs.other[2:]])

    def random_masks(self, count, share=0.5, seed=0):
        rng = np.random.default_rng(seed)
        return self.graph.allowed & (rng.random((count, *self.graph.shape)) < share)

    def slow(self, mask, prompt, other=None, place=None):
        """One prompt, one mask: every reader's input written out as its sum of terms.

        With the place of every token of the prompt the mask is (writers, readers, places).
        """
        runner, graph, decoder = self.runner, self.graph, self.runner.decoder
        other = self.other if other is None else other
        tokens = torch.tensor(self.runs.base[prompt])
        places = np.arange(len(tokens))
        take = lambda values: other.at(values, np.array([prompt]), places)[0]  # noqa: E731
        there = {"input": take(other.embed)}
        here = {"input": decoder.embed(tokens, torch.from_numpy(places))}
        bias, raw_bias, sum_of = [], {}, {}

        def read(label, upto):
            """The reader's input: terms of all writers in `upto`, and what belongs to none."""
            total = sum(bias) if bias else 0.0
            sums = {}
            for writer in upto:
                kept = mask[graph.edge(f"{writer}->{label}")]
                by_token = np.full(len(tokens), kept) if place is None else kept[place]
                chosen = torch.from_numpy(by_token)[:, None]
                term = torch.where(chosen, here[writer], there[writer])
                if writer in sum_of:
                    sums.setdefault(sum_of[writer], []).append(term)
                else:
                    total = total + term
            for (layer, site), terms in sums.items():
                whole = sum(terms) + raw_bias[layer, site]
                post = getattr(decoder.blocks[layer], site)
                total = total + (whole if post is None else post(whole))
            return total

        written = ["input"]
        layout = Layout(
            ids=np.zeros(1, int), prompt=np.zeros(1, int), start=np.zeros(1, int),
            length=np.array([len(tokens)]), offset=np.zeros(1, int),
        )  # fmt: skip
        for layer, block in enumerate(decoder.blocks):
            attn = block.attn
            parts = {}
            for site, count in (
                ("q", attn.n_heads),
                ("k", attn.n_kv_heads),
                ("v", attn.n_kv_heads),
            ):
                found = []
                for head in range(count):
                    x = read(graph.readers[graph.groups(layer)[site].start + head], written)
                    normed = block.ln1(x) if block.ln1 is not None else x
                    found.append(runner.project(block, site, normed)[:, head])
                parts[site] = torch.stack(found, 1)
            q, k = (runner.rotated(attn, s, parts[s], layout.positions) for s in "qk")
            look = torch.from_numpy(places[:, None] >= places)
            if attn.window is not None:
                look &= torch.from_numpy(places[:, None] - places < attn.window)
            weight = attn.o.weight.unflatten(0, (attn.n_heads, attn.d_head))
            raw_bias[layer, "ln1_post"] = 0.0 if attn.o.bias is None else attn.o.bias
            heads = []
            for head in range(attn.n_heads):
                group = head // (attn.n_heads // attn.n_kv_heads)
                allowed, sink = look, None if attn.sinks is None else attn.sinks[head]
                if attn.bias is not None:
                    bias_of = attn.bias(torch.from_numpy(places))[head]
                    allowed = bias_of.masked_fill(~look, -torch.inf)
                pattern = attention_pattern(attn, q[:, head], k[:, group], allowed, sink)
                z = pattern @ parts["v"][:, group]
                name = f"L{layer}H{head}"
                here[name] = z @ weight[head]
                there[name] = take(other.z[layer])[:, head] @ weight[head]
                heads.append(name)
                sum_of[name] = layer, "ln1_post"
            seen = written if block.parallel else written + heads
            name, numbers = f"L{layer}.mlp_out", graph.chosen(layer)
            there[name] = take(other.mlp_out[layer])
            nodes = [f"L{layer}N{number}" for number in numbers]
            if not nodes:
                here[name] = runner.mlp_out(block, read(name, seen))
            else:
                raw_bias[layer, "ln2_post"], down = 0.0, block.mlp.down.weight
                posts = runner.mlp_post(block, read(name, seen), None)
                here[name] = block.mlp.down(posts)
            for column, (node, number) in enumerate(zip(nodes, numbers, strict=True)):
                here[name] = here[name] - posts[:, [number]] * down[number]
                own = runner.mlp_post(block, read(node, seen), None)[:, [number]]
                here[node] = own * down[number]
                there[node] = take(other.neurons[layer])[:, [column]] * down[number]
                there[name] = there[name] - there[node]
            sum_of |= dict.fromkeys([*nodes, name] if nodes else [], (layer, "ln2_post"))
            written = [*written, *heads, *nodes, name]
        return decoder.logits(decoder.ln_final(read("logits", written)[-1:]))[0]


@pytest.mark.parametrize("expand_kv", [False, True])
def test_all_edges_are_the_clean_run_and_none_the_corrupted(wide, expand_kv):
    with true_double():
        case = Case(wide, expand_kv=expand_kv)
        clean, corrupted = (
            wide.last_logits(prompts) for prompts in (case.runs.base, case.runs.other)
        )
        found = case.logits([case.graph.allowed, np.zeros(case.graph.shape, bool)])
    for one, run, plain in ((0, case.base, clean), (1, case.other, corrupted)):
        hidden = final_hidden(case.runner, run.run)
        engine = case.runner.decoder.logits(hidden)
        torch.testing.assert_close(found[one], engine, atol=1e-11, rtol=0)
        # Hugging Face's angles are in float32, and those of one position vary in the last bit.
        torch.testing.assert_close(found[one], plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("ablation", ["other", "zero", "mean"])
@pytest.mark.parametrize("expand_kv", [False, True])
def test_random_circuits_equal_plain_loops(wide, expand_kv, ablation):
    case = Case(wide, expand_kv=expand_kv)
    other = case.other if ablation == "other" else case.constant(ablation)
    masks = case.random_masks(3)
    found = case.logits(masks, other=other, start=ablation == "other")
    for number, mask in enumerate(masks):
        for prompt in range(len(case.task)):
            slow = case.slow(mask, prompt, other)
            torch.testing.assert_close(found[number, prompt], slow, atol=1e-9, rtol=0)


def placed(case, count=3, places=4, share=0.5, seed=0):
    """Random masks by place, and places of every token, not the same in every prompt."""
    rng = np.random.default_rng(seed)
    drawn = rng.random((count, *case.graph.shape, places)) < share
    lengths = case.base.run.lengths
    return case.graph.allowed[..., None] & drawn, rng.integers(0, places, int(lengths.sum()))


@pytest.mark.parametrize("ablation", ["other", "zero", "mean"])
@pytest.mark.parametrize("expand_kv", [False, True])
def test_random_circuits_by_place_equal_plain_loops(wide, expand_kv, ablation):
    case = Case(wide, expand_kv=expand_kv)
    other = case.other if ablation == "other" else case.constant(ablation)
    masks, places = placed(case)
    options = {"other": other, "start": ablation == "other", "places": places}
    found = case.logits(masks, **options)
    assert (found[0] - found[1]).abs().max() > 1e-3
    for number, mask in enumerate(masks):
        for prompt, begin in enumerate(case.base.run.offset):
            place = places[begin : begin + case.base.run.lengths[prompt]]
            slow = case.slow(mask, prompt, other, place)
            torch.testing.assert_close(found[number, prompt], slow, atol=1e-9, rtol=0)
    # The same on the way that keeps gradients, which shares nothing between circuits.
    apart = torch.tensor(masks).double().requires_grad_()
    torch.testing.assert_close(case.logits(apart, **options).detach(), found, atol=1e-9, rtol=0)


def test_one_mask_at_every_place_is_that_mask(family):
    case = Case(family)
    masks = np.concatenate([case.random_masks(3), case.graph.allowed[None]])
    masks = np.concatenate([masks, np.zeros_like(masks[:1])])
    _, places = placed(case)
    everywhere = np.repeat(masks[..., None], 4, -1)
    for other in (case.other, case.constant("zero")):
        options = {"other": other, "start": other is case.other}
        plain = case.logits(masks, **options)
        found = case.logits(everywhere, places=places, **options)
        torch.testing.assert_close(found, plain, atol=0, rtol=0)
        # Beside a circuit that does differ between places, too.
        beside = np.concatenate([everywhere, placed(case)[0]])
        found = case.logits(beside, places=places, **options)[: len(masks)]
        torch.testing.assert_close(found, plain, atol=3e-5, rtol=0)


@pytest.mark.parametrize("place", [1, 4, 6])
def test_one_edge_at_one_place_is_that_edge_with_the_others_there_alone(family, place):
    case = Case(family, lengths=(7, 7))
    rng, every = np.random.default_rng(place), np.argwhere(case.graph.allowed)
    sample = every[rng.choice(len(every), 25, replace=False)]
    masks = np.repeat(case.graph.allowed[None], len(sample), 0)
    masks[np.arange(len(sample)), *sample.T] = False
    mixed = with_others_at(case.base, case.other, np.array([place] * 2))
    expected = case.logits(masks, other=mixed, start=False)
    by_place = np.repeat(np.repeat(case.graph.allowed[None], len(sample), 0)[..., None], 7, -1)
    by_place[np.arange(len(sample)), *sample.T, place] = False
    found = case.logits(by_place, places=np.tile(np.arange(7), 2))
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)


def test_places_that_do_not_fit_are_refused():
    case = Case(wrap(tiny("llama"), name="tiny"))
    masks, places = placed(case)
    for wrong in (places[1:], places + 1, places - 1):
        with pytest.raises(InterpError, match="masks of 4 places"):
            case.logits(masks, places=wrong)
    with pytest.raises(InterpError, match="masks of shape"):
        case.logits(masks)
    with pytest.raises(InterpError, match="masks of shape"):
        case.logits(masks[..., 0], places=places)


def test_nothing_left_is_not_blown_up_by_norms(family):
    """In float32, under zero ablation, sparse circuits leave inputs near zero."""
    case = Case(family)
    zero, mean = case.constant("zero"), case.constant("mean")
    assert zero.nothing
    assert not mean.nothing
    for one, values in zip(mean.tensors, case.other.tensors, strict=True):
        torch.testing.assert_close(one, values.mean(0, keepdim=True), atol=1e-5, rtol=1e-5)
    assert [one.shape for one in zero.tensors] == [one.shape for one in mean.tensors]
    masks = case.random_masks(4, share=0.1)
    masks[0] = False
    found = case.logits(masks, other=zero, start=False)
    for number, mask in enumerate(masks):
        torch.testing.assert_close(found[number, 0], case.slow(mask, 0, zero), atol=1e-4, rtol=0)


def test_one_edge_equals_hooked_runs(wide):
    """Edge by edge through the bridge: the writer's change added to one reader's input."""
    case = Case(wide, lengths=(7,))
    graph, rng = case.graph, np.random.default_rng(0)
    every = np.argwhere(graph.allowed)
    sample = every[rng.choice(len(every), 60, replace=False)]
    masks = np.repeat(graph.allowed[None], len(sample), 0)
    masks[np.arange(len(sample)), sample[:, 0], sample[:, 1]] = False
    with true_double():
        found = case.logits(masks)[:, 0]
        slow = hooked(case, [(graph.writers[w], graph.readers[r]) for w, r in sample])
    assert (slow - slow[0]).abs().max() > 1e-3
    torch.testing.assert_close(found, slow, atol=1e-7, rtol=0)


@pytest.mark.parametrize("place", [1, 4, 6])
def test_one_edge_at_one_token_equals_hooked_runs(wide, place):
    case = Case(wide, lengths=(7,))
    rng, every = np.random.default_rng(place), np.argwhere(case.graph.allowed)
    sample = every[rng.choice(len(every), 25, replace=False)]
    masks = np.repeat(case.graph.allowed[None], len(sample), 0)
    masks[np.arange(len(sample)), sample[:, 0], sample[:, 1]] = False
    with true_double():
        mixed = with_others_at(case.base, case.other, np.array([place]))
        found = case.logits(masks, other=mixed, start=False)[:, 0]
        edges = [(case.graph.writers[w], case.graph.readers[r]) for w, r in sample]
        slow, plain = hooked(case, edges, place), case.logits([case.graph.allowed])[0]
    torch.testing.assert_close(found, slow, atol=1e-7, rtol=0)
    # The two prompts differ from token 2 on; the last token is the one that is read.
    assert ((slow - plain).abs().max() > 1e-5) == (place >= 2)


def hooked(case, edges, place=None):
    """Logits with one edge removed at a time, by hooks on Hugging Face's own forward.

    At all tokens, or at one alone.
    """
    model, decoder = case.model, case.model.decoder
    places = [(0, "resid_pre")]
    places += [(layer, site) for layer in range(model.n_layers) for site in ("z", "mlp_out")]
    places += [(layer, "resid_pre") for layer in range(1, model.n_layers)]

    def keeping(kept, place):
        def hook(value, batch):
            kept[place] = value[0].clone()
            return value

        return hook

    base, other = {}, {}
    for prompts, kept in ((case.runs.base, base), (case.runs.other, other)):
        model.last_logits(prompts, hooks={place: [keeping(kept, place)] for place in places})

    def raw(run, layer, swap=None):
        z = run[layer, "z"].clone()
        if swap is not None:
            z[:, swap] = other[layer, "z"][:, swap]
        made = decoder.blocks[layer].attn.o(z.flatten(1))
        post = decoder.blocks[layer].ln1_post
        return made if post is None else post(made)

    def change(writer):
        whole = changed(writer)
        kept = torch.ones(len(whole)) if place is None else torch.zeros(len(whole))
        if place is not None:
            kept[place] = 1
        return whole * kept[:, None]

    def changed(writer):
        if writer == "input":
            return other[0, "resid_pre"] - base[0, "resid_pre"]
        part = Component.parse(writer)
        if part.site == "mlp_out":
            return other[part.layer, "mlp_out"] - base[part.layer, "mlp_out"]
        return raw(base, part.layer, part.index) - raw(base, part.layer)

    found = []
    for writer, reader in edges:
        if reader == "logits":
            top = model.n_layers - 1
            x = base[top, "resid_pre"] + raw(base, top) + base[top, "mlp_out"] + change(writer)
            found.append(decoder.logits(decoder.ln_final(x[-1:]))[0])
            continue
        part = Component.parse(reader)
        block, x = decoder.blocks[part.layer], base[part.layer, "resid_pre"] + change(writer)
        if part.site == "mlp_out":
            x = x if block.parallel else x + raw(base, part.layer)
            new = case.runner.mlp_out(block, x)
        else:
            normed = block.ln1(x) if block.ln1 is not None else x
            new = case.runner.project(block, part.site, normed)[:, part.index]

        def put(value, batch, part=part, new=new):
            value = value.clone()
            if part.site == "mlp_out":
                value[0] = new
            else:
                value[0, :, part.index] = new
            return value

        found.append(model.last_logits(case.runs.base, hooks={(part.layer, part.site): [put]})[0])
    return torch.stack(found)


@pytest.mark.parametrize("receiver", ["logits", "L2.mlp_out", "L2H1.q", "L2KV0.v"])
def test_one_edge_is_a_frozen_path(family, receiver):
    """path_patching with MLPs held and one receiver measures the same edges."""
    case = Case(family, lengths=(9,))
    graph, scores = case.graph, {}
    for senders in ("heads", "mlps"):
        scores[senders] = path_patching(
            family, case.task, receivers=[receiver], senders=senders, direction="noise",
            freeze_mlps=True, cache=False,
        )  # fmt: skip
    reader = graph.reader(receiver)
    writers = np.flatnonzero(graph.allowed[:, reader])[1:]
    masks = np.repeat(graph.allowed[None], len(writers) + 1, 0)
    masks[np.arange(len(writers)), writers, reader] = False
    values = case.logits(masks).flatten(0, 1)
    targets = case.runs.targets.select(torch.arange(len(case.task)).repeat(len(masks)))
    metric = case.task.metric(Logits(values), targets).view(len(masks), -1).numpy()
    for writer, effect in zip(writers, metric[-1] - metric[:-1], strict=True):
        part = Component.parse(graph.writers[writer])
        if part.site == "z":
            expected = scores["heads"].effects[:, part.layer, part.index]
        else:
            expected = scores["mlps"].effects[:, part.layer]
        np.testing.assert_allclose(effect, expected, atol=2e-4)


def test_sharing_budget_order_and_start_change_nothing(wide):
    case = Case(wide)
    late = np.repeat(case.graph.allowed[None], 4, 0)
    late[1, 3, -1] = late[2, 0, -1] = late[3, 2, -2] = False
    masks = np.concatenate([late, case.random_masks(2)])
    whole = case.logits(masks)
    for options in ({"start": False}, {"budget_gb": 2e-4}):
        torch.testing.assert_close(case.logits(masks, **options), whole, atol=1e-11, rtol=0)
    apart = torch.tensor(masks).double().requires_grad_()
    torch.testing.assert_close(case.logits(apart).detach(), whole, atol=1e-11, rtol=0)
    prompt, mask = np.array([2, 0, 1, 2]), np.array([5, 1, 4, 0])
    some = run_edges(
        case.runner, case.graph, case.base, case.other, torch.tensor(masks),
        prompt=prompt, mask=mask,
    )  # fmt: skip
    torch.testing.assert_close(
        case.runner.decoder.logits(some), whole[mask, prompt], atol=1e-11, rtol=0
    )


def test_gradients_are_those_of_finite_differences(wide):
    case = Case(wide, lengths=(6,))
    shares = torch.rand(1, *case.graph.shape, dtype=torch.float64, generator=torch.manual_seed(0))
    masks = torch.where(torch.tensor(case.graph.allowed), shares, 0.0).requires_grad_()
    width = case.model.d_model
    probe = torch.zeros(1, len(case.graph.readers), 6, width, dtype=torch.float64)
    probe.requires_grad_()
    with true_double():
        value = case.logits(masks, probe=probe)[0, 0, 5]
        value.backward()
        rng = np.random.default_rng(1)
        edges = np.argwhere(case.graph.allowed)
        step = 1e-6
        for writer, reader in edges[rng.choice(len(edges), 12, replace=False)]:
            shift = torch.zeros_like(shares)
            shift[0, writer, reader] = step
            high, low = (case.logits(masks.detach() + s * shift)[0, 0, 5] for s in (1, -1))
            slope = (high - low) / (2 * step)
            torch.testing.assert_close(masks.grad[0, writer, reader], slope, atol=1e-7, rtol=1e-5)
        for reader in rng.choice(len(case.graph.readers), 8, replace=False):
            shift = torch.zeros_like(probe)
            shift[0, reader] = step * torch.randn(6, width, dtype=torch.float64)
            high, low = (
                case.logits(masks.detach(), probe=s * shift.detach())[0, 0, 5] for s in (1, -1)
            )
            along = (probe.grad[0, reader] * shift[0, reader]).sum()
            torch.testing.assert_close(along, (high - low) / 2, atol=1e-13, rtol=1e-4)


def test_mask_gradient_at_the_clean_run_is_edge_attribution(wide):
    """Slope in a mask at all ones: -(a_other - a_online) . slope in in_v, summed over tokens."""
    case = Case(wide, lengths=(6,))
    ones = torch.tensor(case.graph.allowed)[None].double().requires_grad_()
    probe = torch.zeros(1, len(case.graph.readers), 6, case.model.d_model, dtype=torch.float64)
    probe.requires_grad_()
    with true_double():
        case.logits(ones, probe=probe)[0, 0, 5].backward()
    delta = case.other.embed - case.base.embed
    expected = -(probe.grad[0] * delta).sum((1, 2))
    torch.testing.assert_close(ones.grad[0, 0], expected, atol=1e-12, rtol=1e-9)


def test_late_candidates_share_what_is_before(monkeypatch):
    """Edges into the logits cost one run, not one run each."""
    case = Case(wrap(tiny("llama"), name="tiny"), lengths=(9,))
    seen = []
    plain = engine.Runner.mlp_out
    monkeypatch.setattr(
        engine.Runner, "mlp_out", lambda self, b, x: seen.append(len(x)) or plain(self, b, x)
    )
    masks = np.repeat(case.graph.allowed[None], 10, 0)
    masks[np.arange(10), np.arange(10), -1] = False
    case.logits(masks)
    assert seen == [7, 7, 1]  # positions 2 to 8, and in the last layer the last


def test_equal_runs_and_refusals():
    case = Case(wrap(tiny("llama"), name="tiny"))
    same = replace(case.base)
    masks = case.random_masks(2)
    found = case.logits(masks, other=same)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    with pytest.raises(InterpError, match="masks of shape"):
        case.logits(masks[:, :3])
    with pytest.raises(InterpError, match="budget"):
        case.logits(masks, budget_gb=1e-5)

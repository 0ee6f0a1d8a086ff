"""GLU neurons: their weights and activations, and which of them write a direction.

    GLU(x) = sum_i act(g_i . x) (u_i . x) v_i

x is the normed residual stream that the MLP reads, g_i and u_i are the gate and up weights of
neuron i, and v_i is its value vector, a row of the down projection. A neuron's score for a
direction is the score of its v_i.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from interp.core.arguments import Flags, Positions, flags_of, listed, texts_of
from interp.core.components import Component, within
from interp.core.errors import InterpError, unknown
from interp.core.nulls import Null, null_of, turned_directions
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.schema import Brief
from interp.engine.architecture import Decoder, Norm, normed
from interp.models.language_model import LanguageModel
from interp.runs.capture import run_with_cache
from interp.runs.stored_runs import StoredRuns

BLOCK = 2**24  # the most scores held at once


@dataclass(frozen=True, kw_only=True)
class RankedNeuron:
    """A neuron, its signed score, and the layer of the direction that it was scored for."""

    layer: int
    index: int
    score: float
    direction_layer: int


Neuron = str | tuple[int, int] | Component | RankedNeuron
"""A neuron as a label (L26N6475), (layer, index), a component, or an entry of a ranking."""

Directions = Tensor | Mapping[int, Tensor]
"""One direction for all layers (d_model,), one per layer (n_layers, d_model), or a mapping
{layer: (d_model,)}."""

LayerMode = Literal["same_layer", "all_below"]
Score = Literal["cosine", "dot"]


@dataclass(frozen=True, kw_only=True)
class GluNeuron(Brief):
    """The weights of one neuron, or of a layer's neurons, one row each.

    Attributes:
        gate, up: (..., d_model) input weights. They act on the normed stream, or on the stream
            itself if no norm precedes the MLP. To compare them with a direction of the raw stream,
            multiply that by the norm's weight first.
        value: (..., d_model) the output vector. If a post-norm follows (Gemma-2, OLMo-2) it is a
            summand of the norm's input, not of the stream.
        gate_bias, up_bias: (...), or None.
    """

    gate: Tensor
    up: Tensor
    value: Tensor
    gate_bias: Tensor | None
    up_bias: Tensor | None


def glu_vectors(model: LanguageModel, layer: int | str, index: int | None = None) -> GluNeuron:
    """The gate, up and value vectors of one neuron, or of all neurons of a layer.

    One neuron is given by its layer and index, or by its label, such as "L25N100". These are views
    of the model's weights, not copies.

    Raises:
        InterpError: an unknown architecture, an MLP without a gate, or no such layer or neuron.
    """
    if isinstance(layer, str) and index is None:
        (part,) = model.require_parts(layer, "post")
        layer, index = part.layer, part.index
    (layer,) = within([layer], model.n_layers, "layer", model.name)  # type: ignore[list-item]
    mlp = _gated(model, "GLU vectors").blocks[layer].neurons
    assert mlp.up is not None
    rows: slice | int = slice(None)
    if index is not None:
        (rows,) = within([index], model.d_mlp, "neuron", model.name)
    return GluNeuron(
        gate=mlp.gate.weight.T[rows],
        up=mlp.up.weight.T[rows],
        value=mlp.down.weight[rows],
        gate_bias=None if mlp.gate.bias is None else mlp.gate.bias[rows],
        up_bias=None if mlp.up.bias is None else mlp.up.bias[rows],
    )


@dataclass(frozen=True, kw_only=True)
class GluActivations(Brief):
    """Activations of some neurons at one position per sample, each (sample, neuron).

    Attributes:
        neurons: the neurons.
        gate: act(g . x), with the model's activation function.
        up: u . x (site pre_linear).
        product: the factor of v (site post): gate * up, unless an intervention changed it.
    """

    neurons: tuple[Component, ...]
    gate: Tensor
    up: Tensor
    product: Tensor


def glu_activations(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    positions: Positions,
    neurons: Neuron | Sequence[Neuron],
    *,
    budget_gb: float = 2.0,
    runs: StoredRuns | None = None,
) -> GluActivations:
    """The gate, up and product activations of some neurons, at one position of each prompt.

    Prompts, positions (one of each prompt) and `runs` are those of `run_with_cache`. Inside
    `intervene` the activations are those of the changed run.

    Raises:
        InterpError: an unknown architecture, an MLP without a gate, a prompt that lacks a position,
            a neuron that does not exist or is given twice, or whole layers, as they are captured,
            that do not fit the budget.
    """
    decoder = _gated(model, "GLU activations")
    chosen = _components(model, neurons)
    if isinstance(positions, str) and positions == "all":
        raise InterpError("positions of GLU activations", "not one per prompt", "give one each")
    count = len(texts_of(prompts))
    sites, layers = ("pre", "pre_linear", "post"), {neuron.layer for neuron in chosen}
    where = {"layers": layers, "positions": positions}
    seen = run_with_cache(model, prompts, sites=sites, **where, budget_gb=budget_gb, runs=runs)
    gate, up, product = torch.empty(3, count, len(chosen), dtype=model.dtype)
    for layer in layers:
        columns = [column for column, neuron in enumerate(chosen) if neuron.layer == layer]
        indices = [chosen[column].index for column in columns]
        pre, pre_linear, post = (seen[layer, site][:, indices] for site in sites)
        gate[:, columns] = decoder.blocks[layer].neurons.act(pre)
        up[:, columns], product[:, columns] = pre_linear, post
    return GluActivations(neurons=tuple(chosen), gate=gate, up=up, product=product)


def rank_glu(
    model: LanguageModel,
    directions: Directions,
    *,
    layers: Iterable[int] | None = None,
    mode: LayerMode = "same_layer",
    k: int = 50,
    metric: Score = "cosine",
    sign: int = 1,
    first: int | None = None,
) -> list[RankedNeuron]:
    """The neurons whose value vectors are most aligned with the directions w_p, strongest first.

        score(l, i; p) = cos(v_li, w_p), or v_li . w_p

    Args:
        model: a model with a gated MLP and a known architecture.
        directions: the directions w_p, see `Directions`.
        layers: the layers p used; by default all that have a direction.
        mode: "same_layer": the k best neurons of layer p for w_p. "all_below": the k best neurons
            of every layer l <= p for w_p. All are pooled and sorted; a neuron found for several p
            is listed once, with its best score.
        k: number of neurons per layer.
        metric: "cosine", or "dot", which favours long vectors.
        sign: 1, or -1 to rank neurons that write the opposite direction first.
        first: keep only the first so many.

    Raises:
        InterpError: an unknown architecture, an MLP without a gate, a post-norm after the MLP (a
            neuron is then no summand of the stream), a direction that is zero or of another shape,
            or k or first out of range.

    Source: ajyl/verify_circuit (same_layer for ablations, all_below with first=200 for scores).
    """
    at, vectors = _directions(model, directions, layers, metric)
    score, index, of_layer, origin = _pool(model, vectors[None], at, mode, k, metric, sign)
    return [
        RankedNeuron(
            layer=int(of_layer[c]),
            index=int(index[0, c]),
            score=sign * float(score[0, c]),
            direction_layer=int(origin[c]),
        )
        for c in _merge(score[0], index[0], of_layer, origin, first)
    ]


def rank_null(
    model: LanguageModel,
    directions: Directions,
    *,
    layers: Iterable[int] | None = None,
    mode: LayerMode = "same_layer",
    k: int = 50,
    metric: Score = "cosine",
    sign: int = 1,
    first: int | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Null:
    """The mean of sign * score over the neurons of `rank_glu`, compared with random directions.

    Every draw rotates all directions together at random, which keeps their lengths and angles, and
    selects neurons again. So selecting the best of many neurons raises the null as well. Compared
    with random neurons of the same layers, any selection would stand out. Arguments and errors are
    those of `rank_glu`.
    """
    at, vectors = _directions(model, directions, layers, metric)
    turned = [vectors, *turned_directions(vectors, draws, seed=seed)]
    score, index, of_layer, origin = _pool(model, torch.stack(turned), at, mode, k, metric, sign)
    pairs = zip(score, index, strict=True)
    means = [row[_merge(row, found, of_layer, origin, first)].mean() for row, found in pairs]
    return null_of(float(means[0]), np.array(means[1:]))


@dataclass(frozen=True, kw_only=True)
class OpposedNeurons(Brief):
    """Opposite value vectors in two sets of neurons, a and b.

    Attributes:
        pairs: (neuron of a, neuron of b, cosine), most negative first.
        cosine: (neurons of a,) the lowest cosine of each with a neuron of b.
        null: minus the mean of `cosine`, compared with random neurons.
    """

    pairs: tuple[tuple[Component, Component, float], ...]
    cosine: Tensor
    null: Null


def opposed_neurons(
    model: LanguageModel,
    a: Sequence[Neuron],
    b: Sequence[Neuron],
    *,
    k: int = 10,
    without: Tensor | None = None,
    draws: int = 200,
    seed: int = 0,
) -> OpposedNeurons:
    """How opposite the value vectors of two sets of neurons are, compared with random neurons.

        opposition = - mean over i in a of min over j in b of cos(v_i, v_j)

    Positive: the neurons of a have opposite neurons in b. Among many vectors some cosines are
    negative by chance. So the null permutes the neurons of every layer at random, which keeps
    layers, counts and overlap.

    Args:
        model: a model with a gated MLP and a known architecture.
        a: the first set.
        b: the second set.
        k: number of pairs kept.
        without: (d_model,) or (n, d_model) directions projected out of every vector first. Sets
            selected along w and -w are opposite by selection; give w here.
        draws: random draws of the null.
        seed: seed of the draws.

    Raises:
        InterpError: an unknown architecture, an MLP without a gate, a post-norm after the MLP, a
            neuron that does not exist or is given twice in a set, or k out of range.
    """
    sides = [_components(model, side) for side in (a, b)]
    if not 1 <= k <= len(sides[0]) * len(sides[1]):
        found = f"{len(sides[0])} x {len(sides[1])} pairs"
        raise InterpError(f"the {k} most opposite pairs", found, "choose a k from 1 to that number")
    values = {layer: _values(model, layer) for layer in sorted({c.layer for c in sum(sides, [])})}
    gone = torch.zeros(1, model.d_model) if without is None else torch.atleast_2d(without)
    if gone.shape[1:] != (model.d_model,):
        raise InterpError("projecting out", f"shape {tuple(gone.shape)}", "give (n, d_model)")
    axes, size, _ = torch.linalg.svd(gone.float().cpu().T, full_matrices=False)
    basis = axes[:, size > 1e-6 * size.max()].to(model.device)

    def opposed(number: Mapping[int, np.ndarray], keep: int) -> tuple[Tensor, list]:
        rows = ([values[c.layer][number[c.layer][c.index]] for c in side] for side in sides)
        x, y = (v - v @ basis @ basis.T for v in (torch.stack(r).float() for r in rows))
        return _lowest(normalize(x, dim=-1), normalize(y, dim=-1), keep)

    cosine, best = opposed(dict.fromkeys(values, np.arange(model.d_mlp)), k)
    rng, random = np.random.default_rng(seed), np.zeros(draws)
    for draw in range(draws):
        number = {layer: rng.permutation(model.d_mlp) for layer in values}
        random[draw] = -float(opposed(number, 0)[0].mean())
    pairs = tuple((sides[0][i], sides[1][j], value) for value, i, j in best)
    return OpposedNeurons(pairs=pairs, cosine=cosine, null=null_of(-float(cosine.mean()), random))


@dataclass(frozen=True, kw_only=True)
class LabelContrast(Brief):
    """How neurons differ between two classes of samples; positive: larger in valid ones. Float64.

    Attributes:
        neurons: the neurons.
        n: number of (invalid, valid) samples.
        mean, mean_stderr: (2, neuron) mean of gate * up in invalid and in valid samples.
        difference, stderr: (neuron,) valid minus invalid, with Welch's standard error.
        parts, parts_stderr: (3, neuron) contributions of the gate, of up, and of their covariance.
            They sum to `difference`.
        auc, auc_stderr: (neuron,) probability that a valid sample exceeds an invalid one; ties
            count half.
    """

    neurons: tuple[Component, ...]
    n: tuple[int, int]
    mean: Tensor
    mean_stderr: Tensor
    difference: Tensor
    stderr: Tensor
    parts: Tensor
    parts_stderr: Tensor
    auc: Tensor
    auc_stderr: Tensor


def label_contrast(activations: GluActivations, labels: Flags) -> LabelContrast:
    """The difference of gate * up between valid (1) and invalid (0) samples, split by factor.

        E1[ab] - E0[ab] = (E1[a] - E0[a]) (E1[b] + E0[b]) / 2       gate
                        + (E1[b] - E0[b]) (E1[a] + E0[a]) / 2       up
                        + cov1(a, b) - cov0(a, b)                   covariance

    with a = act(g . x), b = u . x and cov with 1/n. The identity is exact. Standard errors of the
    parts are first order, and too small if a part is a product of values near zero. Those of the
    AUC are DeLong's (1988).

    Raises:
        InterpError: labels other than 0 and 1, or fewer than two samples of a class.
    """
    from scipy.stats import rankdata

    gate, up = activations.gate.double(), activations.up.double()
    label = flags_of(labels, len(gate)).astype(int)
    n = [int((label == c).sum()) for c in (0, 1)]
    if min(n) < 2:
        found = f"{n[1]} of 1, {n[0]} of 0"
        raise InterpError("labels", found, "give 0 or 1 for each sample, with two or more of both")
    sides, written = [torch.from_numpy(label == c) for c in (0, 1)], gate * up
    (a0, a1), (b0, b1) = ([x[side].mean(0) for side in sides] for x in (gate, up))
    da, db, a, b = a1 - a0, b1 - b0, (a0 + a1) / 2, (b0 + b1) / 2
    ranks = rankdata(written.numpy(), axis=0)
    mean, error, covariance, influence, auc, auc_error = [], [], [], [], [], []
    for c, side in enumerate(sides):
        x, y, sign = gate[side] - (a0, a1)[c], up[side] - (b0, b1)[c], 2 * c - 1
        mean.append(written[side].mean(0))
        error.append(written[side].var(0) / n[c])
        covariance.append((x * y).mean(0))
        parts = [sign * x * b + da * y / 2, sign * y * a + db * x / 2, x * y]
        influence.append(torch.stack(parts).var(1) / n[c])
        beaten = ranks[side] - rankdata(written[side].numpy(), axis=0)
        auc.append(beaten.mean(0) / n[1 - c])
        auc_error.append(beaten.var(0, ddof=1) / n[1 - c] ** 2 / n[c])
    return LabelContrast(
        neurons=activations.neurons,
        n=(n[0], n[1]),
        mean=torch.stack(mean),
        mean_stderr=torch.stack(error).sqrt(),
        difference=mean[1] - mean[0],
        stderr=torch.stack(error).sum(0).sqrt(),
        parts=torch.stack([da * b, db * a, covariance[1] - covariance[0]]),
        parts_stderr=torch.stack(influence).sum(0).sqrt(),
        auc=torch.from_numpy(auc[1]),
        auc_stderr=torch.from_numpy(np.sqrt(auc_error[0] + auc_error[1])),
    )


def _pool(
    model: LanguageModel, turned: Tensor, at: list[int], mode: str, k: int, metric: str, sign: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The k best neurons of every layer for every direction, in every draw of directions.

    Returns (draw, candidate) sign * score and index, and (candidate,) layer and direction's layer.
    """
    if mode not in get_args(LayerMode):
        raise unknown("mode", mode, get_args(LayerMode))
    if sign not in (1, -1) or not 1 <= k <= model.d_mlp:
        found = f"{model.d_mlp} neurons a layer"
        raise InterpError(
            f"ranking with k={k}, sign={sign}", found, "use k in that range, sign 1 or -1"
        )
    score, index, layers, origin, below = [], [], [], [], mode == "all_below"
    for layer in range(max(at) + 1) if below else at:
        columns = [c for c, p in enumerate(at) if p == layer or (below and p > layer)]
        values = _values(model, layer).float()
        values = normalize(values, dim=-1) if metric == "cosine" else values
        blocks = turned[:, columns].split(max(1, BLOCK // (len(columns) * len(values))))
        best = [(sign * block @ values.T).topk(k, dim=-1) for block in blocks]
        score.append(torch.cat([top.values for top in best]).flatten(1).cpu())
        index.append(torch.cat([top.indices for top in best]).flatten(1).cpu())
        layers += [layer] * (k * len(columns))
        origin += [at[c] for c in columns for _ in range(k)]
    found = (torch.cat(score, 1).double().numpy(), torch.cat(index, 1).numpy())
    return *found, np.array(layers), np.array(origin)


def _merge(
    score: np.ndarray, index: np.ndarray, layer: np.ndarray, origin: np.ndarray, first: int | None
) -> np.ndarray:
    """The candidates of one draw, best first, with each neuron once."""
    order = np.lexsort((origin, index, layer, -score))
    neurons = np.stack([layer[order], index[order]])
    once = order[np.sort(np.unique(neurons, axis=1, return_index=True)[1])]
    if first is not None and not 1 <= first <= len(once):
        raise InterpError(f"the first {first}", f"{len(once)} found", "choose fewer, or raise k")
    return once[:first]


def _directions(
    model: LanguageModel, directions: Directions, layers: Iterable[int] | None, metric: str
) -> tuple[list[int], Tensor]:
    """The layers used and their (layer, d_model) directions, of unit length for cosines."""
    _gated(model, "ranking neurons")
    if metric not in get_args(Score):
        raise unknown("metric", metric, get_args(Score))
    if isinstance(directions, Tensor):
        rows = list(directions) if directions.dim() == 2 else [directions] * model.n_layers
        directions = dict(enumerate(rows)) if len(rows) == model.n_layers else {}
    if layers is None and directions:
        layers = list(directions)
    at = within(layers, model.n_layers, "layer", model.name)
    for p in at:
        w = directions.get(p, torch.empty(0)).float()
        if w.shape != (model.d_model,) or not 0 < float(w.norm()) < float("inf"):
            found = f"shape {tuple(w.shape)}, norm {float(w.norm())}"
            do = f"give ({model.d_model},), ({model.n_layers}, {model.d_model}) or a mapping"
            raise InterpError(f"the direction of layer {p}", found, do)
    vectors = torch.stack([directions[p].detach().float() for p in at]).to(model.device)
    return at, normalize(vectors, dim=-1) if metric == "cosine" else vectors


def _lowest(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, list]:
    """The smallest cosine of every row, and the k smallest of all as (cosine, row, column)."""
    lowest, best = [], []
    step = max(1, BLOCK // len(y))
    for start in range(0, len(x), step):
        cosine = x[start : start + step] @ y.T
        lowest.append(cosine.amin(-1).cpu())
        top = cosine.flatten().topk(min(k, cosine.numel()), largest=False)
        for value, entry in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            best.append((value, start + entry // len(y), entry % len(y)))
        best = sorted(best)[:k]
    return torch.cat(lowest), best


def _values(model: LanguageModel, layer: int) -> Tensor:
    """The value vectors of a layer, if they are summands of the stream."""
    block = _gated(model, "value vectors").blocks[layer]
    if isinstance(block.ln2_post, Norm):
        found = "a post-norm follows the MLP, so a neuron is no summand of the stream"
        do = "use a model without post-norms, or glu_vectors and the norm's weight"
        raise InterpError(f"value vectors of {model.name} as directions", found, do)
    return normed(block.ln2_post, block.neurons.down.weight)


def _gated(model: LanguageModel, what: str) -> Decoder:
    decoder = model.require_decoder(what)
    if model.gated:
        return decoder
    raise InterpError(f"{what} on {model.name}", "its MLP has no gate", "use a gated model")


def _components(model: LanguageModel, neurons: Neuron | Sequence[Neuron]) -> list[Component]:
    """The neurons as components, checked."""
    labels = []
    alone = isinstance(neurons, tuple) and [*map(type, neurons)] == [int, int]
    given: list[Any] = [neurons] if alone else listed(neurons)
    for neuron in given:
        if isinstance(neuron, tuple):
            neuron = Component(neuron[0], "post", neuron[1])
        elif not isinstance(neuron, str | Component):
            try:
                neuron = Component(neuron.layer, "post", neuron.index)
            except AttributeError as error:
                do = "give labels such as L29N236, pairs (layer, index), or entries of a ranking"
                raise InterpError(f"the neuron {neuron!r:.60}", "it names no neuron", do) from error
        labels.append(str(neuron))
    return model.require_parts(labels, "post")

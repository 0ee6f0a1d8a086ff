"""How strongly attention heads drive GLU neurons, from weights and from activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import Flags, Positions, flags_of, marks_of, places_of, texts_of
from interp.core.components import Component, precedes
from interp.core.errors import InterpError, unknown
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.schema import Brief
from interp.core.statistics import ratio, standard_error
from interp.engine.architecture import Decoder, Function, Linear, Norm
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.runs.capture import run_with_cache
from interp.runs.stored_runs import StoredRuns

ScoreMode = Literal["diag", "ov", "frobenius", "activation"]
Parts = Sequence[Component]


@dataclass(frozen=True, kw_only=True)
class HeadWeights(Brief):
    """The weights of one query head, with the key and value projections of its group.

    The head's output is z W_O with z = pattern (x W_V + b_V). The output bias belongs to no head.

    Attributes:
        W_Q, W_K, W_V: (d_model, d_head).
        W_O: (d_head, d_model).
        b_Q, b_K, b_V: (d_head,), or None.
    """

    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    b_Q: Tensor | None
    b_K: Tensor | None
    b_V: Tensor | None


@dataclass(frozen=True, kw_only=True)
class HeadGluScores(Tabled):
    """The scores of J heads for K neurons; see `head_glu_scores` for the modes.

    Attributes:
        mode: the mode of the scores.
        heads: labels of the heads.
        neurons: labels of the neurons.
        values: (K, J) scores; nan if the head cannot reach the neuron.
        stderr: (K, J) standard errors over samples; nan if only weights were read.
        gate, up: (K, J) the scores of a neuron's gate input and of its up input.
        head_values: (J,) mean of `values` over the neurons that a head reaches; nan if none.
        head_stderr: (J,) its standard error, over samples, or over neurons without samples.
        reached: (K, J) whether the head precedes the neuron.
        n: number of samples; None if only weights were read.
        samples: in mode "activation", (n, K, J) each: "gate" and "up" are the head's summands of
            the two inputs; "frozen" and "recomputed" are the activation minus that without the
            head, with the norm's scale fixed or recomputed.
    """

    mode: ScoreMode
    heads: tuple[str, ...]
    neurons: tuple[str, ...]
    values: np.ndarray
    stderr: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    head_values: np.ndarray
    head_stderr: np.ndarray
    reached: np.ndarray
    n: int | None
    samples: dict[str, np.ndarray]

    @property
    def excluded(self) -> np.ndarray:
        """(J,) number of neurons that each head cannot reach, which its mean leaves out."""
        return (~self.reached).sum(0)

    def ranking(self) -> list[tuple[str, float, float]]:
        """(head, score, standard error), largest first, without heads that reach no neuron."""
        order = np.argsort(-self.head_values, kind="stable")[: self.reached.any(0).sum()]
        errors = self.head_stderr.tolist()
        return [(self.heads[j], float(self.head_values[j]), errors[j]) for j in order.tolist()]

    def to_dataframe(self) -> Any:
        """One row per pair of neuron and head."""
        import pandas as pd

        pairs = pd.DataFrame(product(self.neurons, self.heads), columns=["neuron", "head"])
        names = {"value": "values"} | {name: name for name in ("stderr", "gate", "up")}
        return pairs.assign(n=self.n, **{k: getattr(self, v).ravel() for k, v in names.items()})


def head_weights(model: LanguageModel, head: str, *, fold_norm: bool = False) -> HeadWeights:
    """The weights of a head; with grouped-query attention W_K and W_V are those of its group.

    Args:
        model: a model with a known architecture (with a `decoder`).
        head: a label such as L17H11.
        fold_norm: fold the first norm's weight and bias into Q, K and V, so that they act on
            x / scale (LayerNorm's centring is folded as well). Norms of queries and keys (Qwen3,
            Gemma-3, OLMo-2) follow the projections and are not folded.

    Raises:
        InterpError: no such head, or a model with an unknown architecture.
    """
    (part,) = model.require_parts([head], "z")
    block, number = _decoder(model).blocks[part.layer], part.index or 0
    attn, norm = block.attn, block.ln1 if fold_norm else None
    group = number // (attn.n_heads // attn.n_kv_heads)
    found = []
    for linear, index in ((attn.q, number), (attn.k, group), (attn.v, group)):
        cut = _cut(linear, range(index * attn.d_head, (index + 1) * attn.d_head))
        bias = cut.bias
        if norm is not None and norm.bias is not None:
            shift = norm.bias.to(cut.weight) @ cut.weight
            bias = shift if bias is None else bias + shift
        found.append((_folded(norm, cut.weight), bias))
    (w_q, b_q), (w_k, b_k), (w_v, b_v) = found
    return HeadWeights(W_Q=w_q, W_K=w_k, W_V=w_v, W_O=attn.W_O[number], b_Q=b_q, b_K=b_k, b_V=b_v)


def head_glu_scores(
    model: LanguageModel,
    heads: Sequence[str],
    neurons: Sequence[str],
    *,
    mode: ScoreMode,
    prompts: Task | Prompt | Sequence[Prompt] | None = None,
    positions: Positions | None = None,
    labels: Flags | None = None,
    norm: Literal["frozen", "recomputed"] = "frozen",
    runs: StoredRuns | None = None,
) -> HeadGluScores:
    """How strongly attention heads drive GLU neurons directly, through no layer in between.

    Neuron i has gate weights g_i and up weights u_i: h_i = act(g_i . x + b) (u_i . x + b').

    "diag":  score = act(g_i . c) (u_i . c),  c = diagonal of W_V W_O.
        The formula released with Lee et al. 2025 (arXiv 2504.14379; ajyl/self_verification), for
        comparison. It is not a composition, and changes if the residual basis is rotated.
    "frobenius":  s(r) = |W_V W_O r| / (|W_V W_O|_F |r|),  score = sqrt((s(g)^2 + s(u)^2) / 2),
        with the norms' weights folded into W_V, g and u. Reading r from the head's output is
        reading W_V W_O r from its input: the composition of Elhage et al. 2021
        (transformer-circuits.pub).
    "ov":  "frobenius" times sqrt(d_model): 1 is the root mean square for a random direction.
    "activation":  score = mean of (h_i - h_i without o),  o = z W_O of the head at the position
        read. In the unit of h_i. With labels, the mean over valid (True) samples minus that over
        the others. `gate` and `up` are the head's summands of g_i . x and u_i . x.

    Positive: the head raises the neuron ("ov" and "frobenius" have no sign). A head reaches later
    layers, and its own layer if the MLP follows attention. Other pairs are nan and in no mean.

    Args:
        model: a model with a gated MLP and a known architecture.
        heads: labels such as L17H11.
        neurons: labels such as L26N6475.
        mode: one of the above. The options below are for "activation".
        prompts: texts, token ids or a task (its clean prompts).
        positions: one token of each prompt, at which heads and neurons are read; see
            `interp.core.arguments.Positions`.
        labels: for each prompt True or 1 if it is valid, else False or 0.
        norm: whether the second norm's scale is fixed, or recomputed without the head.
        runs: stored runs of the prompts to read from, as in `run_with_cache`.

    Raises:
        InterpError: no gated MLP, or an unknown architecture; a post-norm after attention, under
            which a head's output is no summand of the residual stream (except for "diag");
            prompts that are missing, or given in another mode; a position that a prompt lacks; or
            a class without samples.
    """
    norms = ("frozen", "recomputed")
    for name, value, names in (("mode", mode, get_args(ScoreMode)), ("norm", norm, norms)):
        if value not in names:
            raise unknown(name, value, names)
    senders, receivers = model.require_parts(heads, "z"), model.require_parts(neurons, "post")
    glus = _glus(_decoder(model, gated=True, summands=mode != "diag"), receivers)
    reached = np.array(
        [[precedes(s, r, parallel=model.parallel) for s in senders] for r in receivers]
    )
    if mode == "activation":
        if prompts is None or positions is None:
            found = f"prompts={prompts!r}, positions={positions!r}"
            raise InterpError(f"mode {mode!r}", found, "give prompts, and one position of each")
        texts = texts_of(prompts)
        if not texts:
            raise InterpError(f"mode {mode!r}", "no prompts", "give at least one")
        at = places_of(positions, [model.tokenize(text) for text in texts], marks_of(prompts))
        groups = _classes(len(at), labels)
        samples = _contributions(model, senders, glus, reached, texts, at, runs)
        (values, stderr), (gate, _), (up, _) = (
            _contrast(samples[part], groups) for part in (norm, "gate", "up")
        )
        per_head = ratio(np.where(reached, samples[norm], 0).sum(1), reached.sum(0))
        head_values, head_stderr = _contrast(per_head, groups)
    else:
        if not prompts is positions is labels is None:
            raise InterpError(
                f"prompts for mode {mode!r}",
                "it reads weights only",
                "leave prompts, positions and labels out",
            )
        samples, stderr = {}, np.full(reached.shape, math.nan)
        values, gate, up = _from_weights(model, senders, glus, reached, mode)
        head_values = ratio(np.where(reached, values, 0).sum(0), reached.sum(0))
        head_stderr = np.array(
            [standard_error(v[r]) for v, r in zip(values.T, reached.T, strict=True)]
        )
    return HeadGluScores(
        mode=mode,
        heads=tuple(map(str, senders)),
        neurons=tuple(map(str, receivers)),
        values=values,
        stderr=stderr,
        gate=gate,
        up=up,
        head_values=head_values,
        head_stderr=head_stderr,
        reached=reached,
        n=len(samples[norm]) if samples else None,
        samples=samples,
    )


@dataclass(frozen=True, kw_only=True)
class _Glus:
    """The chosen neurons of one layer, in float64; `columns` are their indices among all chosen."""

    layer: int
    columns: list[int]
    norm: Norm | None
    gate: Linear
    up: Linear
    act: Function

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.act(gate) * up


def _glus(decoder: Decoder, parts: Parts) -> list[_Glus]:
    found = []
    for layer in sorted({part.layer for part in parts}):
        columns = [i for i, part in enumerate(parts) if part.layer == layer]
        numbers = [parts[i].index or 0 for i in columns]
        mlp, norm = decoder.blocks[layer].neurons, decoder.blocks[layer].ln2
        assert mlp.up is not None
        if norm is not None:
            bias = None if norm.bias is None else _wide(norm.bias)
            norm = replace(norm, weight=_wide(norm.weight), bias=bias)
        gate, up = _cut(mlp.gate, numbers, wide=True), _cut(mlp.up, numbers, wide=True)
        found.append(_Glus(layer=layer, columns=columns, norm=norm, gate=gate, up=up, act=mlp.act))
    return found


def _from_weights(
    model: LanguageModel, senders: Parts, glus: list[_Glus], reached: np.ndarray, mode: ScoreMode
) -> np.ndarray:
    """(3, K, J): score, gate and up."""
    table = np.full((3, *reached.shape), math.nan)
    chance = math.sqrt(model.d_model) if mode == "ov" else 1.0
    for j, sender in enumerate(senders):
        weights = head_weights(model, str(sender), fold_norm=mode != "diag")
        w_v, w_o = _wide(weights.W_V), _wide(weights.W_O)
        frobenius = ((w_v.T @ w_v) * (w_o @ w_o.T)).sum().sqrt()
        for glu in (glu for glu in glus if reached[glu.columns[0], j]):
            rows = [glu.gate.weight, glu.up.weight]
            if mode == "diag":
                gate, up = ((w_v * w_o.T).sum(1) @ row for row in rows)
                score = glu(gate, up)
            else:
                rows = [_folded(glu.norm, row) for row in rows]
                lengths = [(frobenius * row.norm(dim=0)).clamp(min=1e-300) for row in rows]
                read = [(w_v @ (w_o @ row)).norm(dim=0) for row in rows]
                gate, up = (chance * b / n for b, n in zip(read, lengths, strict=True))
                score = ((gate**2 + up**2) / 2).sqrt()
            table[:, glu.columns, j] = torch.stack([score, gate, up]).numpy()
    return table


def _contributions(
    model: LanguageModel,
    senders: Parts,
    glus: list[_Glus],
    reached: np.ndarray,
    prompts: Sequence[Prompt],
    at: list[int],
    runs: StoredRuns | None,
) -> dict[str, np.ndarray]:
    stream = "resid_pre" if model.parallel else "resid_mid"
    layers = {sender.layer for sender in senders} | {glu.layer for glu in glus}
    seen = run_with_cache(
        model, prompts, sites=["z", stream], layers=layers, positions=at, runs=runs
    )
    names = ("gate", "up", "frozen", "recomputed")
    found = {name: np.full((len(at), *reached.shape), math.nan) for name in names}
    for j, sender in enumerate(senders):
        output = _wide(head_weights(model, str(sender)).W_O)
        written = _wide(seen[sender.layer, "z"][:, sender.index]) @ output
        for glu in (glu for glu in glus if reached[glu.columns[0], j]):
            assert glu.norm is not None
            whole = _wide(seen[glu.layer, stream])
            share, x, without = glu.norm.share(written, whole), glu.norm(whole), whole - written
            gate, up = share @ glu.gate.weight, share @ glu.up.weight
            full, x_without = glu(glu.gate(x), glu.up(x)), glu.norm(without)
            frozen = full - glu(glu.gate(x) - gate, glu.up(x) - up)
            recomputed = full - glu(glu.gate(x_without), glu.up(x_without))
            for name, value in zip(names, (gate, up, frozen, recomputed), strict=True):
                found[name][:, glu.columns, j] = value.numpy()
    return found


def _decoder(model: LanguageModel, *, gated: bool = False, summands: bool = False) -> Decoder:
    decoder = model.require_decoder("head to GLU communication")
    blocks = decoder.blocks
    if gated and any(block.neurons.up is None for block in blocks):
        raise InterpError(f"GLU neurons of {model.name}", "no gate", "use a model with a gated MLP")
    if summands and any(block.ln1_post or block.ln2 is None for block in blocks):
        raise InterpError(
            f"head outputs of {model.name}",
            "a norm follows attention, so a head's output is no summand of the residual stream",
            "use interp.neurons.silencing.activation_delta, which is exact on every architecture",
        )
    return decoder


def _classes(n: int, labels: Flags | None) -> list[np.ndarray]:
    """Masks of the samples whose mean is added and, with labels, of those subtracted."""
    if labels is None:
        return [np.ones(n, dtype=bool)]
    valid = flags_of(labels, n)
    if valid.all() or not valid.any():
        given = f"{len(valid)} labels, {int(valid.sum())} valid"
        raise InterpError(f"labels of {n} samples", given, "label each sample, with both classes")
    return [valid, ~valid]


def _contrast(values: np.ndarray, groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    means = [values[group].mean(0) for group in groups]
    errors = [standard_error(values[group]) for group in groups]
    return means[0] - sum(means[1:]), np.sqrt(sum(error**2 for error in errors))


def _cut(linear: Linear, columns: Sequence[int], *, wide: bool = False) -> Linear:
    keep = _wide if wide else torch.Tensor.detach
    bias = None if linear.bias is None else keep(linear.bias[list(columns)])
    return Linear(weight=keep(linear.weight[:, list(columns)]), bias=bias)


def _folded(norm: Norm | None, weight: Tensor) -> Tensor:
    """(d_model, n) input weights after a norm, as weights that act on the stream / scale."""
    if norm is None:
        return weight
    weight = norm.weight.to(weight)[:, None] * weight
    return weight - weight.mean(0) if norm.centred else weight


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()

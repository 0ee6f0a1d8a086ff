"""Differences between two models of one architecture, such as a base and a fine-tuned model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import Positions, listed, marks_of, places_of, reads_arguments, texts_of
from interp.core.components import Component, within
from interp.core.errors import InterpError
from interp.core.nulls import Null, null_of
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.run_options import RunKeywords, RunOptions
from interp.core.statistics import Estimate, mean_estimate, ratio_of_means
from interp.engine.architecture import Decoder
from interp.engine.stopping import stoppable
from interp.models.families import read_architecture
from interp.models.language_model import LanguageModel
from interp.models.loading import unwrapped, wrap
from interp.plots.tables import Tabled
from interp.runs.capture import run_with_cache
from interp.runs.stored_runs import StoredRuns

_SITE = {"head": "z", "neuron": "post"}
_PARTS = {"head": ("q", "k", "v", "o"), "neuron": ("gate", "up", "value")}
_ALIKE = (
    *("family", "n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_mlp"),
    *("gated", "parallel", "post_norms", "dtype"),
)


@dataclass(frozen=True, kw_only=True)
class WeightComparison(Tabled):
    """The result of `compare_weights`: one row per component and part. Arrays are (rows,).

    Attributes:
        base: name of the base model.
        trained: name of the trained model.
        base_hash: its hash.
        trained_hash: its hash.
        part: q, k, v or o of a head; gate, up or value of a neuron.
        layer: the component's layer.
        index: the component's number.
        owner: the number of the head or neuron that owns the weights; for k and v the key/value
            head.
        cosine, norm_difference, change: see `compare_weights`.
    """

    base: str
    trained: str
    base_hash: str
    trained_hash: str
    part: np.ndarray
    layer: np.ndarray
    index: np.ndarray
    owner: np.ndarray
    cosine: np.ndarray
    norm_difference: np.ndarray
    change: np.ndarray

    def null(
        self, selection: Iterable[str], *, draws: int = 10_000, seed: int = 0
    ) -> dict[str, Null]:
        """Compare the mean `change` of a selection with that of random components, for each part.

        A draw takes from every layer as many compared components as the selection has there,
        without replacement and including the selection. This is a permutation test: p is uniform
        for a selection made without looking at the weights, for any number of heads per layer, and
        1 if all of them are selected. For k and v each key/value head counts once.

        Raises:
            InterpError: labels other than heads (L17H11) only or neurons (L5N3) only, a component
                that was not compared, or an infinite change.
        """
        chosen = [Component.parse(label) for label in selection]
        sites = {component.site for component in chosen if component.index is not None}
        kinds = [kind for kind, site in _SITE.items() if sites == {site}]
        names = [name for kind in kinds for name in _PARTS[kind] if name in self.part]
        if not names or any(component.index is None for component in chosen):
            raise InterpError(
                f"a null for {[str(component) for component in chosen]}",
                f"compared: {', '.join(dict.fromkeys(self.part.tolist()))}",
                "give heads only or neurons only, all of them compared",
            )
        return {name: self._null(name, chosen, draws, seed) for name in names}

    def _null(self, name: str, chosen: Sequence[Component], draws: int, seed: int) -> Null:
        rng = np.random.default_rng(seed)
        selected, random, count = 0.0, np.zeros(draws), 0
        for layer in sorted({component.layer for component in chosen}):
            here = (self.part == name) & (self.layer == layer)
            wanted = np.array([c.index for c in chosen if c.layer == layer])
            pool, first = np.unique(self.owner[here], return_index=True)
            changes = self.change[here][first]
            if not np.isin(wanted, self.index[here]).all() or not np.isfinite(changes).all():
                raise InterpError(
                    f"a null for {name} of {wanted.tolist()} in layer {layer}",
                    f"{len(changes)} compared, largest change {changes.max(initial=0):g}",
                    "compare the whole layer, and select no components that are zero in the base",
                )
            mine = np.isin(pool, self.owner[here & np.isin(self.index, wanted)])
            selected, count = selected + changes[mine].sum(), count + int(mine.sum())
            for draw in range(draws):
                taken = rng.choice(len(pool), int(mine.sum()), replace=False, shuffle=False)
                random[draw] += changes[taken].sum()
        # A draw equal to the selection must tie with it, even if its sum rounds differently.
        return null_of(float(selected / count), random / count * (1 + 1e-12))

    def to_dataframe(self) -> Any:
        """One row per component and part."""
        import pandas as pd

        marks = np.where(np.isin(self.part, _PARTS["head"]), "H", "N")
        parts = zip(self.layer, marks, self.index, strict=True)
        facts = {"component": [f"L{layer}{mark}{index}" for layer, mark, index in parts]}
        columns = ("part", "layer", "index", "owner", "cosine", "norm_difference", "change")
        return pd.DataFrame(facts | {column: getattr(self, column) for column in columns})


def compare_weights(
    base: LanguageModel,
    trained: LanguageModel,
    *,
    heads: Iterable[str] | None = None,
    neurons: Iterable[str] | None = None,
) -> WeightComparison:
    """How much training changed the weights of each head and neuron.

    For a part with flattened weights a in the base model and b in the trained model, in float64:

        cosine = a . b / (|a| |b|)
        norm_difference = (|b| - |a|) / |a|       positive: longer after training
        change = |b - a| / |a|

    The parts of a head are W_Q, W_K, W_V and W_O (q, k, v, o; no biases), each (d_model, d_head)
    or its transpose. With grouped queries k and v are those of the key/value head that a query head
    uses. The parts of a neuron are its input vectors gate and up (up only in a gated MLP) and its
    output vector value, each (d_model,). Norm weights are not folded in. The cosine of a zero
    vector is nan; two zero vectors differ by 0.

    Args:
        base: the reference.
        trained: a model of the same sizes and dtype.
        heads: labels such as L17H11; all by default, none for an empty list.
        neurons: labels such as L5N3; all by default, none for an empty list.

    Raises:
        InterpError: models of different sizes, weights that this package cannot read, an unknown
            component, or nothing to compare.

    Source: Lee et al. 2025, arXiv 2504.14379 (cosines and norms of a fine-tuned model's weights).
    """
    _require_alike(base, trained)
    left, right = (
        base.require_decoder("comparing weights"),
        trained.require_decoder("comparing weights"),
    )
    tables: list[np.ndarray] = []
    names: list[str] = []
    for kind, labels in (("head", heads), ("neuron", neurons)):
        chosen = _selected(base, labels, kind)
        for name in _PARTS[kind]:
            if name == "up" and not base.gated:
                continue
            group = base.n_heads // base.n_kv_heads if name in ("k", "v") else 1
            for layer, numbers in chosen.items():
                before, after = (_rows(decoder, layer, name) for decoder in (left, right))
                owner = np.array(numbers) // group
                measured = [values[owner] for values in _differences(before, after)]
                tables.append(np.stack([np.full(len(owner), layer), numbers, owner, *measured]))
                names += [name] * len(owner)
    if not tables:
        raise InterpError("comparing weights", "no heads and no neurons", "give some, or None")
    table = np.concatenate(tables, axis=1)
    layer, index, owner = table[:3].astype(int)
    return WeightComparison(
        base=base.name, trained=trained.name, base_hash=base.hash, trained_hash=trained.hash,
        part=np.array(names), layer=layer, index=index, owner=owner,
        cosine=table[3], norm_difference=table[4], change=table[5],
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ActivationComparison(Tabled):
    """The result of `compare_activations`.

    Attributes:
        base: name of the base model.
        trained: name of the trained model.
        sites, layers: the labels of the axes.
        cosine, relative: (n, sites, layers), see `compare_activations`.
        kl: (n,) next-token KL divergence in nats.
    """

    base: str
    trained: str
    sites: tuple[str, ...]
    layers: tuple[int, ...]
    cosine: np.ndarray
    relative: np.ndarray
    kl: np.ndarray

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.kl)

    @property
    def kl_mean(self) -> Estimate:
        """Mean next-token KL divergence with its interval."""
        return mean_estimate(torch.from_numpy(self.kl))

    def to_dataframe(self) -> Any:
        """One row per site and layer: means over prompts, standard errors, intervals and n."""
        import pandas as pd

        site, layer = np.meshgrid(self.sites, self.layers, indexing="ij")
        facts: dict[str, Any] = {"site": site.ravel(), "layer": layer.ravel(), "n": self.n}
        for name in ("cosine", "relative"):
            found = ratio_of_means(getattr(self, name).reshape(self.n, -1))
            facts |= {name: found.values, f"{name}_stderr": found.stderr}
            facts |= {f"{name}_low": found.low, f"{name}_high": found.high}
        return pd.DataFrame(facts)


@reads_arguments
def compare_activations(
    base: LanguageModel,
    trained: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    positions: Positions = "last",
    *,
    sites: Iterable[str] = ("resid_post",),
    layers: Iterable[int] | None = None,
    runs: tuple[StoredRuns, StoredRuns] | None = None,
    **run: Unpack[RunKeywords],
) -> ActivationComparison:
    """How much two models differ on the same tokens, at one position of each prompt.

    With a and b the values of a site in the base and in the trained model (all heads or neurons as
    one vector), and p the next-token distributions at the position:

        cosine = a . b / (|a| |b|),   relative = |b - a| / |a|,   kl = KL(p_base || p_trained)

    kl is in nats and never negative. The cosine of a zero vector is nan. Prompts are cut after
    their position, since a causal model does not look further.

    Args:
        base: the reference.
        trained: a model of the same sizes, vocabulary and dtype.
        prompts: texts (tokenised by the base model), token tuples or a task (its clean prompts).
        positions: one token of each prompt, see `interp.core.arguments.Positions`.
        sites: sites compared.
        layers: layers compared; all by default.
        runs: stored runs of the cut prompts in the base and in the trained model.
        run: budget_gb, the memory for the values of one model, 2 by default; progress, called with
            (models run, 2); cancelled.

    Raises:
        InterpError: models of different sizes or tokens, no prompts, a site that is absent, or a
            prompt that lacks a position.
    """
    _require_alike(base, trained, "d_vocab")
    sites = tuple(dict.fromkeys(listed(sites)))
    chosen = within(layers, base.n_layers, "layer", base.name)
    rows = _cut(base, trained, prompts, positions)
    options = RunOptions(**{"budget_gb": 2.0, **run})
    wanted = {"sites": sites, "layers": chosen, "positions": "last"}
    seen = []
    with stoppable(options.cancelled):
        for model, own in zip((base, trained), runs or (None, None), strict=True):
            seen.append(
                run_with_cache(model, rows, runs=own, budget_gb=options.budget_gb, **wanted)
            )
            if options.progress is not None:
                options.progress(len(seen), 2)
    measured = np.empty((2, len(rows), len(sites), len(chosen)))
    for s, site in enumerate(sites):
        for i, layer in enumerate(chosen):
            before, after = (acts[layer, site].flatten(1).double() for acts in seen)
            measured[0, :, s, i], _, measured[1, :, s, i] = _differences(before, after)
    before, after = (acts.logits.double().log_softmax(-1) for acts in seen)
    return ActivationComparison(
        base=base.name, trained=trained.name, sites=sites, layers=tuple(chosen),
        cosine=measured[0], relative=measured[1],
        kl=(before.exp() * (before - after)).sum(-1).numpy(),
    )  # fmt: skip


def blend_weights(
    base: LanguageModel,
    actor: LanguageModel,
    heads: Iterable[str] | None,
    alpha: float,
    *,
    shared_kv: bool = False,
    check: bool = True,
) -> LanguageModel:
    """A new model: the base with the attention weights of some heads moved towards the actor's.

        W = W_base + alpha (W_actor - W_base),   for W_Q, W_K, W_V, W_O of each head

    alpha = 0 is the base model, 1 the actor, 2 extrapolates. Biases and all other weights are the
    base's. Neither model is changed.

    Args:
        base: the model that is copied.
        actor: a model of the same sizes and dtype.
        heads: labels such as L17H11; None for all.
        alpha: how far the weights are moved.
        shared_kv: allow blending W_K and W_V of a key/value head even if it also serves query
            heads that are not given. Blending changes what all of these read.
        check: see `interp.models.loading.load_model`.

    Raises:
        InterpError: models of different sizes, weights that this package cannot read, an unknown
            head or none, a key/value head shared with heads that are not given, or an alpha that is
            not finite.

    Sources: Lee et al. 2025, arXiv 2504.14379, and ajyl/verify_circuit (three heads, alpha 2);
    Ilharco et al. 2023, arXiv 2212.04089 (differences of weights as vectors).
    """
    _require_alike(base, actor)
    chosen = _selected(base, heads, "head")
    if not chosen or not math.isfinite(alpha):
        raise InterpError(
            f"blending {heads} by {alpha}",
            "no heads, or alpha is not finite",
            "give heads and a number",
        )
    group = base.n_heads // base.n_kv_heads
    shared = {layer: sorted({head // group for head in found}) for layer, found in chosen.items()}
    everyone = range(base.n_heads)
    served = {layer: {h for h in everyone if h // group in own} for layer, own in shared.items()}
    others = [f"L{layer}H{h}" for layer in chosen for h in sorted(served[layer] - {*chosen[layer]})]
    if others and not shared_kv:
        raise InterpError(
            "blending W_K and W_V",
            f"they are shared with heads not given: {', '.join(others)}",
            "give these too, or pass shared_kv=True to change what they read",
        )
    sources, copy = (
        (base.require_decoder("comparing weights"), actor.require_decoder("comparing weights")),
        unwrapped(base),
    )
    for layer, found in chosen.items():
        parameters, numbers = _element_numbers(copy, layer)
        flat = torch.cat([parameter.data.flatten() for parameter in parameters])
        for name in _PARTS["head"]:
            owners = shared[layer] if name in ("k", "v") else found
            old, new = (_rows(decoder, layer, name)[owners] for decoder in sources)
            where = _rows(numbers, layer, name)[owners].long().to(flat.device)
            flat[where] = torch.lerp(old, new, alpha).to(flat)
        pieces = flat.split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.data.copy_(piece.view_as(parameter))
    count = sum(map(len, chosen.values()))
    name = f"{base.name} + {alpha:g} ({actor.name} - base) on {count} heads"
    return wrap(copy, base.tokenizer, name=name, card=base.card, check=check)


def _require_alike(left: LanguageModel, right: LanguageModel, *more: str) -> None:
    differ = [
        f"{name} {getattr(left, name)} and {getattr(right, name)}"
        for name in (*_ALIKE, *more)
        if getattr(left, name) != getattr(right, name)
    ]
    if differ:
        raise InterpError(
            f"comparing {left.name} with {right.name}",
            f"they differ in {'; '.join(differ)}",
            "give two models of one architecture, loaded with one dtype",
        )


def _selected(
    model: LanguageModel, labels: Iterable[str] | None, kind: str
) -> dict[int, list[int]]:
    """Layer -> sorted numbers of the given heads or neurons."""
    size = model.n_heads if kind == "head" else model.d_mlp
    if labels is None:
        return {layer: list(range(size)) for layer in range(model.n_layers)}
    found: dict[int, set[int]] = {}
    for label in listed(labels):
        part = Component.parse(label)
        if part.site != _SITE[kind] or part.index is None:
            raise InterpError(
                f"{kind} {label!r}", f"not a {kind}", "write L17H11 for a head, L5N3 for a neuron"
            )
        within([part.layer], model.n_layers, "layer", model.name)
        within([part.index], size, kind, model.name)
        found.setdefault(part.layer, set()).add(part.index)
    return {layer: sorted(numbers) for layer, numbers in sorted(found.items())}


def _rows(decoder: Decoder, layer: int, part: str) -> Tensor:
    """(components, weights) one part of every head, key/value head or neuron of a layer."""
    attn = decoder.blocks[layer].attn
    if part in _PARTS["head"]:
        heads = attn.n_kv_heads if part in ("k", "v") else attn.n_heads
        weight = attn.o.weight if part == "o" else getattr(attn, part).weight.T
        rows = weight.unflatten(0, (heads, -1)).flatten(1)
    else:
        mlp = decoder.blocks[layer].neurons
        rows = mlp.down.weight if part == "value" else getattr(mlp, part).weight.T
    return rows.double().cpu()


def _differences(before: Tensor, after: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosine, relative difference of norms, and relative norm of the difference of each row."""
    short, long, apart = before.norm(dim=1), after.norm(dim=1), (after - before).norm(dim=1)
    cosine = (before * after).sum(1).div(short * long).clamp(-1, 1)
    norms, change = (torch.where(x == 0, x, x / short).numpy() for x in (long - short, apart))
    return cosine.numpy(), norms, change


def _cut(
    base: LanguageModel,
    trained: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    positions: Positions,
) -> list[tuple[int, ...]]:
    """The tokens of each prompt, up to and including its position."""
    read = [base.tokenize(text) for text in texts_of(prompts)]
    if not read:
        raise InterpError("comparing activations", "no prompts", "give at least one")
    for i, prompt in enumerate(read):
        other = prompt
        if prompt.text is not None and trained.tokenizer is not None:
            other = trained.tokenize(prompt.text)
        if other.tokens != prompt.tokens:
            raise InterpError(
                f"prompt {i} in {base.name} and {trained.name}",
                f"the tokens differ:\n  {prompt.shown()}\n  {other.shown()}\n",
                "give tuples of token ids",
            )
    at = places_of(positions, read, marks_of(prompts))
    return [prompt.tokens[: index + 1] for prompt, index in zip(read, at, strict=True)]


def _element_numbers(hf_model: Any, layer: int) -> tuple[list[Any], Decoder]:
    """The parameters of a layer, and its weights with every value replaced by its index.

    The index is the value's position in the concatenated parameters. Fused and transposed matrices
    are read as for measurements, so writing values back through these indices needs no second
    description of the architecture.
    """
    parameters = [p for n, p in hf_model.named_parameters() if str(layer) in n.split(".")]
    held, start = [parameter.data for parameter in parameters], 0
    try:
        for parameter in parameters:
            numbers = torch.arange(start, start + parameter.numel(), dtype=torch.float64)
            parameter.data = numbers.view_as(parameter).to(parameter.device)
            start += parameter.numel()
        return parameters, read_architecture(hf_model)
    finally:
        for parameter, values in zip(parameters, held, strict=True):
            parameter.data = values

"""Training linear probes: whether a label can be predicted from activations, and the direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import (
    Flags,
    Positions,
    flags_of,
    listed,
    marks_of,
    places_of,
    reads_arguments,
    texts_of,
)
from interp.core.components import SITES, within
from interp.core.errors import InterpError, unknown
from interp.core.folds import equal_rows, joined, stratified_folds
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.run_options import Progress, never
from interp.core.schema import Whole, checked
from interp.engine.memory import says_too_little
from interp.engine.stopping import stop_if_asked, stoppable
from interp.models.language_model import LanguageModel
from interp.probing.probes import (
    ProbeKind,
    ProbeMetrics,
    Probes,
    decision,
    evaluation,
    logistic_probes,
    measures_once,
    permuted_labels,
)
from interp.runs.capture import run_with_cache
from interp.runs.stored_runs import StoredRuns

FEWEST = 10
"""The least number of examples of each class."""


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """AdamW options for softmax probes.

    Attributes:
        lr: learning rate.
        steps: training steps.
        batch_size: rows per step, drawn without replacement; None for all.
        betas: AdamW's betas.
    """

    lr: float = 1e-3
    steps: int = 1000
    batch_size: int | None = 128
    betas: tuple[float, float] = (0.9, 0.99)


class FitKeywords(TypedDict, total=False):
    """Keywords of `train_probes` and `probe_model`; see `FitOptions`."""

    kind: ProbeKind
    folds: int
    shuffles: int
    regularisation: float
    optimiser: Optimiser | None
    seed: int
    progress: Progress | None
    cancelled: Callable[[], bool]
    workers: int


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How probes are trained.

    Attributes:
        kind: "logistic" or "softmax".
        folds: number of folds; 1 / folds of the rows are held out.
        shuffles: number of control runs.
        regularisation: for "logistic", scikit-learn's C is 1 / (n_train * regularisation).
        optimiser: options of "softmax" probes.
        seed: seed of the split, permutations, initialisation, batches and bootstrap.
        progress: called with (probes fitted, probes in total), controls apart; for "softmax" with
            (steps done, steps in total).
        cancelled: asked before every fit or step; training stops when it returns True.
        workers: processes that share the probes; 0 fits them in this one. The numbers are the same
            for 1 and more. A call that was stopped goes on from its finished probes. For "logistic"
            only: softmax probes are trained together.

    Raises:
        InterpError: an unknown kind, or an option that is out of range or does not apply.
    """

    kind: ProbeKind = "logistic"
    folds: int = 4
    shuffles: int = 20
    regularisation: float = 0.01
    optimiser: Optimiser | None = None
    seed: int = 0
    progress: Progress | None = None
    cancelled: Callable[[], bool] = never
    workers: int = 0

    def __post_init__(self) -> None:
        checked(Whole, self.workers, "workers")
        logistic = self.kind == "logistic"
        if self.kind not in ("logistic", "softmax"):
            raise unknown("kind of probe", self.kind, ("logistic", "softmax"))
        if self.shuffles < 1 or self.folds < 2 or (logistic and self.optimiser is not None):
            raise InterpError(
                f"{self.kind} probes, folds={self.folds}, shuffles={self.shuffles}, "
                f"optimiser={self.optimiser}",
                "no held-out fold, no control, or an optimiser that logistic probes do not use",
                "give folds of at least 2, shuffles of at least 1, and optimiser for softmax only",
            )
        if self.workers and not logistic:
            raise InterpError(
                f"{self.kind} probes with workers={self.workers}",
                "they are trained together, step by step",
                "use workers=0, or logistic probes",
            )
        if self.regularisation < 0 or (logistic and self.regularisation == 0):
            raise InterpError(
                f"{self.kind} probes with regularisation {self.regularisation:g}",
                "without it, separable classes have no finite best weights",
                "give more than 0 (or 0 for softmax)",
            )


@says_too_little
@reads_arguments
def train_probes(
    X: Tensor,
    y: Flags,
    *,
    groups: Iterable[Hashable] | None = None,
    coordinates: Mapping[str, Sequence[int]] | None = None,
    source: Mapping[str, str] | None = None,
    **fit: Unpack[FitKeywords],
) -> Probes:
    """Fit a linear probe for every leading index of X (*leading, N, d); evaluate on held-out rows.

        logistic:  mean_i c_i log(1 + exp(-s_i (w . x_i + b))) + regularisation / 2 |w|^2
        softmax:   mean_i c_i CE(softmax(x_i P), y_i),   P = (P_invalid, P_valid), no bias

    s is +1 for valid and -1 for invalid; c balances the classes. Logistic probes are fitted to
    features standardised with the training rows, and w and b are mapped back to the coordinates of
    X. Softmax probes are fitted to X itself, initialised from N(0, 1) / sqrt(d), by AdamW with
    weight decay `regularisation`.

    One of `folds` stratified folds is held out. Groups are never split, nor are rows that are equal
    (see `interp.core.folds.equal_rows`). The reported probe is the one evaluated. The control
    repeats this `shuffles` times with labels permuted, separately among training and held-out rows
    (between whole groups if no group has both labels).

    Args:
        X: activations of any float type; without leading axes, one probe.
        y: (N,) labels, True or 1 for valid, False or 0 for invalid.
        groups: one label per row for rows that belong together, such as a problem's id. By default
            every row is a group. Equal rows are always in one group.
        coordinates: names and labels of the leading axes; by default layer, head, axis2, ...
        source: facts stored with the result.
        fit: kind, folds, shuffles, regularisation, optimiser, seed, progress, cancelled and
            workers; see `FitOptions`.

    Raises:
        InterpError: shapes that do not fit, values that are not finite, fewer than 10 examples of a
            class, a class in fewer than `folds` groups, or an option that does not apply.

    Departs from Lee et al. (ajyl/verify_circuit, src/probe.py): gradients are cleared at every
    step; the split is seeded and by group; classes are balanced; the number of steps is fixed, not
    chosen by validation loss; and there is a control, after Hewitt and Liang 2019 (arXiv
    1909.03368). Source: Lee et al. 2025, arXiv 2504.14379.
    """
    options = FitOptions(**fit)
    for name, value in (("coordinates", coordinates), ("source", source)):
        if value is not None and not isinstance(value, Mapping):
            raise InterpError(f"{name} of train_probes()", f"{value!r:.60}", "give a dictionary")
    seed, decay = options.seed, options.regularisation
    X, labels, group = _checked(X, y, groups)
    _require_enough(labels, group, options.folds)
    named = named_axes(coordinates, X.shape[:-2])
    test = stratified_folds(labels, group, options.folds, seed, held_out=1) == 0
    random = np.random.default_rng(seed)
    mixed = [permuted_labels(labels, group, ~test, random) for _ in range(options.shuffles)]
    runs = np.stack([labels, *mixed])
    fitted = X[..., torch.from_numpy(~test), :]
    settings: dict[str, Any] = {"seed": seed, "folds": options.folds, "regularisation": decay}
    columns = initial = None
    with stoppable(options.cancelled):
        if options.kind == "softmax":
            optimiser = options.optimiser or Optimiser()
            settings |= asdict(optimiser) | {"betas": [*optimiser.betas]}
            all_columns, initial = _softmax(fitted, runs[:, ~test], optimiser, options)
            columns, weights = all_columns[0], all_columns[..., 1] - all_columns[..., 0]
            bias = torch.zeros(weights.shape[:-1], dtype=weights.dtype)
        else:
            weights, bias = logistic_probes(
                fitted,
                runs[:, ~test],
                decay,
                options.progress,
                workers=options.workers,
                cancelled=options.cancelled,
            )
    scores = decision(X[..., torch.from_numpy(test), :], weights, bias)
    controls = [measures_once(s, run[test]) for s, run in zip(scores[1:], runs[1:], strict=True)]
    return Probes(
        kind=options.kind,
        weights=weights[0],
        bias=bias[0],
        columns=columns,
        initial=initial,
        test=torch.from_numpy(test),
        heldout=evaluation(scores[0], labels[test], group[test], seed),
        shuffled=torch.stack(controls),
        shuffled_weights=weights[1:],
        train_valid=int(labels[~test].sum()),
        train_invalid=int((~labels[~test]).sum()),
        coordinates=named,
        settings=settings,
        source=dict(source or {}),
    )


def evaluate_probes(
    probes: Probes,
    X: Tensor,
    y: Flags,
    *,
    groups: Iterable[Hashable] | None = None,
    seed: int = 0,
) -> ProbeMetrics:
    """Evaluate trained probes on new rows X (*leading, N, d), e.g. of another model or position.

    All rows are evaluated; none of them may be among the training rows. The bootstrap draws groups;
    equal rows are always in one group.

    Args:
        probes: trained probes.
        X: (*leading, N, d) activations.
        y: (N,) labels, True or 1 for valid, False or 0 for invalid.
        groups: as in `train_probes`.
        seed: seed of the bootstrap.

    Raises:
        InterpError: shapes that do not fit, or labels of one class.
    """
    X, labels, group = _checked(X, y, groups)
    scores = decision(X, probes.weights[None], probes.bias[None])[0]
    return evaluation(scores, labels, group, seed)


@says_too_little
@reads_arguments
def probe_model(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    positions: Positions,
    labels: Flags,
    *,
    groups: Iterable[Hashable] | None = None,
    sites: Iterable[str] = ("resid_post", "attn_out", "mlp_out", "z"),
    layers: Iterable[int] | None = None,
    expect: Collection[int] | None = None,
    runs: StoredRuns | None = None,
    budget_gb: float = 2.0,
    **fit: Unpack[FitKeywords],
) -> dict[str, Probes]:
    """Train probes on a model's activations at one token of each prompt: site name -> Probes.

    Leading axes are (layer,), (layer, head) for q and z, and (layer, kv_head) for k and v. For
    heads in the residual basis, use `head_outputs`. Tokens after the position are not run, since a
    causal model does not see them. Prompts that are equal up to their position are in one group.

    Args:
        model: the model.
        prompts: texts, token tuples or a task (its clean prompts).
        positions: one token of each prompt, see `interp.core.arguments.Positions`.
        labels: one label per prompt, True or 1 for valid, False or 0 for invalid.
        groups: as in `train_probes`.
        sites: sites to probe.
        layers: layers to probe; all by default.
        expect: token ids; every position must hold one of them. Guards against positions that are
            off by one.
        runs: stored runs of the cut prompts to read from.
        budget_gb: memory for the activations.
        fit: as in `train_probes`; progress counts sites.

    Raises:
        InterpError: lists of unequal lengths, a position outside its prompt or on an unexpected
            token, a site that cannot be probed, and all that `train_probes` refuses.
    """
    sites = list(dict.fromkeys(listed(sites)))
    chosen = within(layers, model.n_layers, "layer", model.name)
    if "pattern" in sites:
        raise InterpError("probes of patterns", "their width varies", "choose other sites")
    cut = _cut(model, prompts, positions, expect)
    truth = flags_of(labels, len(cut))
    group = joined(group_numbers_of(groups, len(cut)), cut)
    options = FitOptions(**fit)
    _require_enough(truth, group, options.folds)
    with stoppable(options.cancelled):
        seen = run_with_cache(
            model, cut, sites=sites, layers=chosen, positions="last", budget_gb=budget_gb, runs=runs
        )
    found = {}
    for site in sites:
        X = torch.stack([seen[layer, site] for layer in chosen])
        coordinates = {"layer": chosen}
        if X.ndim == 4:
            coordinates[str(SITES[site])] = list(range(X.shape[2]))
        found[site] = train_probes(
            X.movedim(1, -2),
            truth,
            groups=group.tolist(),
            coordinates=coordinates,
            source={"model": model.name, "model_hash": model.hash, "site": site},
            **{**fit, "progress": None},
        )
        if options.progress is not None:
            options.progress(len(found), len(sites))
    return found


def head_outputs(model: LanguageModel, z: Tensor, layer: int) -> Tensor:
    """The output z W_O of every head, (N, head, d_model), from z (N, head, d_head).

    The sum over heads is the attention output without its bias. If a post-norm follows (Gemma-2,
    OLMo-2), the sum is the norm's input, not a summand of the residual stream.

    Raises:
        InterpError: no such layer, z of another shape, or a model with an unknown architecture.
    """
    within([layer], model.n_layers, "layer", model.name)
    decoder = model.require_decoder("head outputs")
    if z.ndim != 3 or z.shape[1:] != (model.n_heads, model.d_head):
        raise InterpError(
            f"z of shape {tuple(z.shape)}",
            f"{model.name} has {model.n_heads} heads of width {model.d_head}",
            "give (N, head, d_head), as captured",
        )
    return decoder.blocks[layer].attn.head_outputs(z).transpose(0, 1).detach().cpu()


def _cut(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    positions: Positions,
    expect: Collection[int] | None,
) -> list[tuple[int, ...]]:
    """The tokens of each prompt, up to and including its position."""
    read = [model.tokenize(text) for text in texts_of(prompts)]
    cut = []
    for i, at in enumerate(places_of(positions, read, marks_of(prompts))):
        tokens = read[i].tokens
        if expect is not None and tokens[at] not in expect:
            near = model.tokenize(tokens[max(0, at - 2) : at + 3]).shown()
            raise InterpError(
                f"one of the tokens {sorted(expect)} at position {at} of prompt {i}",
                f"token {tokens[at]}, in {near}",
                "correct the positions, or expect",
            )
        cut.append(tuple(tokens[: at + 1]))
    return cut


def group_numbers_of(groups: Iterable[Hashable] | None, n: int) -> np.ndarray:
    """(n,) the number of each row's group; without groups every row is one.

    Raises:
        InterpError: there is not one group per row.
    """
    named = range(n) if groups is None else groups
    named = named.tolist() if isinstance(named, Tensor | np.ndarray) else listed(named)
    if len(named) != n:
        raise InterpError(f"{len(named)} groups", f"{n} examples", "give one group per example")
    return joined(named)


def _checked(
    X: Tensor, y: Flags, groups: Iterable[Hashable] | None
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Activations on the CPU, labels, and groups in which equal rows are together; all checked."""
    if X.ndim < 2 or not X.is_floating_point() or not bool(torch.isfinite(X).all()):
        raise InterpError(
            f"{X.dtype} activations of shape {tuple(X.shape)}",
            "not (*leading, N, d), or not finite numbers",
            "check the axes, and the model for NaN and overflow",
        )
    labels = flags_of(y, X.shape[-2])
    if labels.all() or not labels.any():
        raise InterpError(
            f"labels of {len(labels)} examples",
            f"{int(labels.sum())} valid, {int((~labels).sum())} invalid",
            "give examples of both classes",
        )
    X = X.detach().cpu()
    return X, labels, joined(group_numbers_of(groups, len(labels)), equal_rows(X))


def _require_enough(labels: np.ndarray, group: np.ndarray, folds: int) -> None:
    """Refuse classes with too few examples or groups to be split."""
    rows = {"valid": int(labels.sum()), "invalid": int((~labels).sum())}
    held = {
        "valid": len(np.unique(group[labels])),
        "invalid": len(np.unique(group[~labels])),
    }
    if min(rows.values()) < FEWEST or min(held.values()) < folds:
        counts = ", ".join(f"{rows[k]} {k} in {held[k]} groups" for k in rows)
        raise InterpError(
            f"probes with one of {folds} folds held out",
            counts,
            f"give at least {FEWEST} examples of each class, in at least {folds} groups each",
        )


def named_axes(
    coordinates: Mapping[str, Sequence[int]] | None, leading: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """The labels of every leading axis, by name.

    Raises:
        InterpError: an axis, or an index along it, is not named.
    """
    if coordinates is None:
        names = ("layer", "head", *(f"axis{i}" for i in range(2, len(leading))))
        return {name: tuple(range(size)) for name, size in zip(names, leading, strict=False)}
    named = {name: tuple(listed(labels)) for name, labels in coordinates.items()}
    if [len(labels) for labels in named.values()] != list(leading):
        raise InterpError(
            f"coordinates { ({k: len(v) for k, v in named.items()}) }",
            f"leading axes {tuple(leading)}",
            "name each axis and every index along it",
        )
    return named


def _softmax(
    X: Tensor, runs: np.ndarray, optimiser: Optimiser, options: FitOptions
) -> tuple[Tensor, Tensor]:
    """Columns (run, *leading, d, 2) for labels (run, n), and their initial (*leading, d, 2)."""
    leading, (n, d) = X.shape[:-2], X.shape[-2:]
    flat, labels = X.reshape(-1, n, d).float(), torch.from_numpy(runs)
    random = torch.Generator().manual_seed(options.seed)
    start = torch.randn(len(flat), d, 2, generator=random) / math.sqrt(d)
    P = start.repeat(len(runs), 1, 1, 1).requires_grad_()
    valid = labels.sum(1, keepdim=True)
    balance = torch.where(labels, n / (2 * valid), n / (2 * (n - valid)))
    adamw = torch.optim.AdamW(
        [P], lr=optimiser.lr, betas=optimiser.betas, weight_decay=options.regularisation
    )
    size = min(n, optimiser.batch_size or n)
    with torch.enable_grad():
        for step in range(optimiser.steps):
            stop_if_asked()
            rows = torch.randperm(n, generator=random)[:size] if size < n else torch.arange(n)
            adamw.zero_grad()
            logits = torch.einsum("mnd,rmdc->rmnc", flat[:, rows], P).log_softmax(-1)
            named = torch.where(labels[:, None, rows], logits[..., 1], logits[..., 0])
            (-balance[:, None, rows] * named).mean(-1).sum().backward()
            adamw.step()
            if options.progress is not None:
                options.progress(step + 1, optimiser.steps)
    shape = (*leading, d, 2)
    return P.detach().double().reshape(len(runs), *shape), start.double().reshape(shape)

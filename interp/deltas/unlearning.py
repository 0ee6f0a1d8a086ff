"""Unlearning by component: which heads and MLPs serve what is forgotten, what is kept, or both."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import listed, reads_arguments
from interp.core.components import Component
from interp.core.errors import InterpError, unknown
from interp.core.nulls import matched_components
from interp.core.prompts import Task
from interp.core.run_options import Progress
from interp.core.schema import Brief, Count, checked
from interp.deltas.pair_losses import Pairs, TokenRows, encoded_pairs, row_batches, token_losses
from interp.models.language_model import LanguageModel
from interp.models.loading import plain_view
from interp.models.weight_delta import WeightDelta
from interp.patching.activation import activation_patching
from interp.results.scores import Scores

UpdateRule = Literal["by group", "uniform", "ascent"]
"""Which gradient each component follows; see `unlearn`."""

_FORGOTTEN = 8.0
"""Nats per token beyond which a continuation counts as forgotten: its loss no longer grows."""


@dataclass(frozen=True, kw_only=True)
class ComponentGroups(Brief):
    """Components by what they serve: labels of heads (L9H6) and MLP outputs (L4.mlp_out).

    Attributes:
        forget: needed for the behaviour that is forgotten, not for the one that is kept.
        retain: needed for the one that is kept, not for the other.
        shared: needed for both.
        effects: of each component: its effect on the first and on the second task, as a fraction of
            the gap; positive: it is needed.
    """

    forget: tuple[str, ...]
    retain: tuple[str, ...]
    shared: tuple[str, ...]
    effects: Mapping[str, tuple[float, float]] = field(default_factory=dict, repr=False)

    @property
    def all(self) -> tuple[str, ...]:
        """The components of the three groups."""
        return (*self.forget, *self.retain, *self.shared)

    def random(self, model: LanguageModel, *, seed: int = 0) -> ComponentGroups:
        """Groups of the same sizes, drawn from the unlisted components of the same layers: a null.

        An MLP has no other in its layer and is replaced by one of another layer.
        """
        chosen = [Component.parse(label) for label in self.all]
        drawn = matched_components(chosen, model.n_layers, model.size, np.random.default_rng(seed))
        names = iter(map(str, drawn))
        first, second, third = (
            tuple(itertools.islice(names, len(group)))
            for group in (self.forget, self.retain, self.shared)
        )
        return ComponentGroups(forget=first, retain=second, shared=third)


@reads_arguments
def group_components(
    model: LanguageModel, forget: Task, retain: Task, *, top: int = 16
) -> ComponentGroups:
    """Sort heads and MLPs into those needed for one task, for another, or for both.

        effect = (m[clean] - m[clean with c := corrupted]) / (m[clean] - m[corrupted])

    over the prompts of each task (`activation_patching` with direction="noise", exact). The `top`
    components of each task with the largest positive effect are its own; those of both are shared.

    Args:
        model: a model with a fast engine.
        forget: pairs that show the behaviour to forget.
        retain: pairs that show the behaviour to keep.
        top: how many components of each task.

    Raises:
        InterpError: as in `activation_patching`, or more components than the model has.

    Source: after arXiv 2604.04982 (forget-specific, retain-specific and shared modules). Its
    abstract is what we read: how it scores modules is our choice.
    """
    top = checked(Count, top, "the components of a group")
    found: dict[str, list[float]] = {}
    for task in (forget, retain):
        for site, by in (("z", ("layer", "head")), ("mlp_out", ("layer",))):
            scores = activation_patching(model, task, site=site, by=by, direction="noise")
            for one in scores.top(_cells(scores)):
                found.setdefault(one.label, []).append(one.value)
    if top > len(found):
        asked = f"the top {top} components of {model.name}"
        raise InterpError(asked, f"it has {len(found)}", "choose fewer")
    own = []
    for which in (0, 1):
        order = sorted(found, key=lambda label: -found[label][which])
        own.append([label for label in order[:top] if found[label][which] > 0])
    first, second = own
    return ComponentGroups(
        forget=tuple(label for label in first if label not in second),
        retain=tuple(label for label in second if label not in first),
        shared=tuple(label for label in first if label in second),
        effects={label: (a, b) for label, (a, b) in found.items()},
    )


def _cells(scores: Scores) -> int:
    """The number of components of a sweep."""
    return int(np.prod(scores.effects.shape[1:]))


@dataclass(frozen=True, kw_only=True)
class Unlearning(Brief):
    """The change that unlearning made, and its course.

    Attributes:
        delta: the change of the weights.
        rule: which gradients were followed.
        forget_loss, retain_loss: (steps,) loss in nats per token on each step's rows, before it.
    """

    delta: WeightDelta
    rule: str
    forget_loss: np.ndarray
    retain_loss: np.ndarray


@reads_arguments
def unlearn(
    model: LanguageModel,
    groups: ComponentGroups,
    forget: Pairs,
    retain: Pairs,
    *,
    rule: UpdateRule = "by group",
    steps: int = 50,
    rate: float = 1e-4,
    batch: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> Unlearning:
    """Make continuations unlikely and keep others, by changing what some components write.

    Only the matrices through which the components of the groups write are trained: rows of W_O for
    a head, W_down for an MLP. With L_f the loss of the continuations to forget and L_r that of
    those to keep, in nats per token, a step of Adam follows

        by group   forget components:  d/dw max(0, 8 - L_f)
                   retain components:  d/dw L_r
                   shared components:  d/dw L_r + g,  g the first gradient without its part against
                                       the second: g_f - min(0, g_f . g_r) / |g_r|^2 g_r
        uniform    all components:     d/dw [max(0, 8 - L_f) + L_r]      (gradient difference)
        ascent     all components:     d/dw max(0, 8 - L_f)

    What was forgotten is a question for `survival`: also of other texts, of other components
    (`ComponentGroups.random`), and after rounding (`taken_back`, `compress`).

    Args:
        model: a model of a known family; it is not changed.
        groups: the components.
        forget: texts, and the continuations that become unlikely.
        retain: texts, and the continuations that are kept.
        rule: see above.
        steps: steps of Adam.
        rate: its learning rate.
        batch: rows of each kind in a step.
        seed: of the order of the rows.
        progress: called with (steps done, steps).

    Raises:
        InterpError: no components, no rows to forget or to retain, a continuation without tokens,
            an unknown rule, a mixture of experts, or an output map that shares its tensor.

    Source: after arXiv 2604.04982, of which we read the abstract: the update of the shared group is
    our reading. Gradient difference: Liu et al. 2022, arXiv 2203.12817.
    """
    if rule not in get_args(UpdateRule):
        raise unknown("rule of updates", rule, get_args(UpdateRule))
    if not groups.all:
        raise InterpError(f"unlearning in {model.name}", "no components", "give some")
    steps, batch = checked(Count, steps, "steps"), checked(Count, batch, "rows of a step")
    rows = [
        encoded_pairs(model, pairs, name)
        for pairs, name in ((forget, "forget"), (retain, "retain"))
    ]
    model.refuse_changed("unlearning")
    copy = deepcopy(plain_view(model))
    masks = _masks(model, groups)
    trained = {name: p for name, p in copy.named_parameters() if name in masks["all"]}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    adam = torch.optim.Adam(trained.values(), lr=rate)
    curve: tuple[list[float], list[float]] = ([], [])
    drawn = [row_batches(found, batch, seed + which) for which, found in enumerate(rows)]
    for step in range(steps):
        gradients = []
        for which in (0, 1):
            loss = _loss(copy, next(drawn[which]))
            curve[which].append(float(loss.detach()))
            goal = (_FORGOTTEN - loss).clamp(min=0) if which == 0 else loss
            found = torch.autograd.grad(goal, list(trained.values()))
            gradients.append(dict(zip(trained, found, strict=True)))
        for name, parameter in trained.items():
            first, second = (one[name] for one in gradients)
            parameter.grad = _step(first, second, {k: m.get(name) for k, m in masks.items()}, rule)
        adam.step()
        if progress is not None:
            progress(step + 1, steps)
    dense = {}
    for name, parameter in trained.items():
        mask = masks["all"][name]
        dense[name] = torch.where(mask, parameter.detach() - start[name], 0).contiguous()
    label = f"unlearning {rule}, {len(groups.all)} components, {steps} steps"
    return Unlearning(
        delta=WeightDelta(name=label, base=model.hash, dense=dense),
        rule=rule,
        forget_loss=np.array(curve[0]),
        retain_loss=np.array(curve[1]),
    )


def _step(
    forget: Tensor, retain: Tensor, masks: Mapping[str, Tensor | None], rule: UpdateRule
) -> Tensor:
    """The gradient of one tensor, 0 outside the components."""

    def inside(group: str, gradient: Tensor) -> Tensor:
        mask = masks[group]
        return torch.zeros_like(gradient) if mask is None else torch.where(mask, gradient, 0)

    if rule == "uniform":
        return inside("all", forget + retain)
    if rule == "ascent":
        return inside("all", forget)
    ours, theirs = inside("shared", forget), inside("shared", retain)
    against = (ours * theirs).sum().clamp(max=0) / theirs.pow(2).sum().clamp(min=1e-30)
    return inside("forget", forget) + inside("retain", retain) + theirs + ours - against * theirs


def _masks(model: LanguageModel, groups: ComponentGroups) -> dict[str, dict[str, Tensor]]:
    """For each group, where in each tensor its components write."""
    decoder = model.require_decoder("unlearning")
    named = {p.data_ptr(): (name, p) for name, p in plain_view(model).named_parameters()}
    masks: dict[str, dict[str, Tensor]] = {"forget": {}, "retain": {}, "shared": {}, "all": {}}
    for group in ("forget", "retain", "shared"):
        for label in listed(getattr(groups, group)):
            part = Component.parse(label)
            model.require_component(part)
            block = decoder.blocks[part.layer]
            if part.site == "z" and part.index is not None:
                weight, d_head = block.attn.o.weight, model.d_head
                rows = slice(part.index * d_head, (part.index + 1) * d_head)
            elif part.site == "mlp_out" and part.index is None:
                weight, rows = block.neurons.down.weight, slice(None)
            else:
                do = "give heads such as L9H6, and MLPs such as L4.mlp_out"
                raise InterpError(f"unlearning in {label}", "not a head or an MLP", do)
            if weight.data_ptr() not in named:
                what = "its output map shares a tensor with others"
                raise InterpError(f"unlearning in {label}", what, "use another family")
            name, parameter = named[weight.data_ptr()]
            for key in (group, "all"):
                mask = masks[key].setdefault(name, torch.zeros_like(parameter, dtype=torch.bool))
                turned = mask if parameter.stride() == weight.stride() else mask.T
                turned[rows] = True
    return masks


def _loss(copy: Any, rows: TokenRows) -> Tensor:
    """Mean loss of the continuations' tokens."""
    losses = token_losses(copy, rows, next(copy.parameters()).device)
    return losses.sum() / sum(len(tokens) - start for tokens, start in rows)


def relearning(
    model: LanguageModel,
    found: Unlearning,
    groups: ComponentGroups,
    forget: Pairs,
    *,
    steps: int = 20,
    rate: float = 1e-4,
    batch: int = 8,
    seed: int = 0,
) -> np.ndarray:
    """(steps,) the loss of forgotten continuations while they are learnt again.

    The same components follow the gradient of their loss, from the unlearnt weights. What comes
    back in a few steps was hidden, not removed.
    """
    with found.delta.applied(model):
        everything = replace(groups, forget=(), retain=groups.all, shared=())
        again = unlearn(
            model, everything, forget, forget, rule="by group", steps=steps, rate=rate,
            batch=batch, seed=seed,
        )  # fmt: skip
    return again.retain_loss

"""Which heads trigger a behaviour: their values exchanged between the two prompts of each pair.

Necessity is what a refused prompt loses when a head takes its value from the answered prompt.
Sufficiency is what the answered prompt gains when the head takes its value from the refused one.
Heads that act through later heads are found here, but not by direct attribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os.path import commonprefix

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import listed
from interp.core.components import Component, within
from interp.core.errors import InterpError
from interp.core.metrics import Logits
from interp.core.nulls import Null, null_of
from interp.core.prompts import Task
from interp.core.run_options import Progress
from interp.core.schema import Brief
from interp.core.statistics import Estimate, ratio_estimate
from interp.engine.forward import Runner
from interp.engine.readout import LogitsOf
from interp.engine.restart import baseline, final_hidden
from interp.heads.switching import Sides, both_sides, changed_runs, head_scores
from interp.models.language_model import HOOKED, LanguageModel
from interp.results.scores import Scores
from interp.runs.capture import run_with_cache
from interp.runs.change import Change, Tokens
from interp.runs.hooks import intervene
from interp.runs.kinds import one_edit, random_like
from interp.runs.pairs import check_gap

Alignment = Sequence[Mapping[int, int]]
"""For each pair: token of the clean prompt -> the corresponding token of the corrupted prompt."""


@dataclass(frozen=True, kw_only=True)
class Interchange(Brief):
    """Every head's value exchanged between the two prompts of each pair.

    necessity: m(clean) - m(clean with the head's value from corrupted). sufficiency: m(corrupted
    with the head's value from clean) - m(corrupted). aligned: (n,) tokens exchanged in each pair.
    """

    necessity: Scores
    sufficiency: Scores
    aligned: np.ndarray


def head_interchange(
    model: LanguageModel,
    task: Task,
    *,
    alignment: Alignment | None = None,
    layers: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Interchange:
    """Necessity and sufficiency of every head by interchange, as fractions of the gap.

    The metric is that of the task, and published percentages depend on it. Pairs of equal length
    need no alignment, and then this equals `activation_patching` of z. Other pairs need an
    alignment that says which tokens correspond (see `align_ends`). The released code aligns from
    the start and cuts the longer prompt, which misaligns the template's last tokens. Tokens without
    a counterpart keep their value.

    Args:
        model: a model with a fast engine.
        task: clean prompts show the behaviour, corrupted ones do not.
        alignment: one map for each pair.
        layers: the layers; all by default.
        progress: called with (prompts done, prompts in total).

    Raises:
        InterpError: unequal lengths without an alignment, tokens that do not exist or are used
            twice, no fast engine, or inside `intervene`.

    Source: arXiv 2604.04385 (gregfrank/how-alignment-routes).
    """
    model.require_decoder("interchange of heads")
    sides = both_sides(model, task)
    maps = _checked(sides, alignment)
    chosen = within(layers, model.n_layers, "layer", model.name)
    heads = [[Component(layer, "z", h)] for layer in chosen for h in range(model.n_heads)]
    metrics = _by_engine(model, task, sides, maps, heads, alone=True, progress=progress).numpy()
    ends = (metrics[0, 0], metrics[1, 0])
    necessity, sufficiency = (
        head_scores(
            model,
            task,
            effects.T.reshape(len(task), len(chosen), -1),
            ends,
            method="interchange",
            direction=direction,
            layers=chosen,
            positions="all aligned tokens",
        )
        for effects, direction in (
            (ends[0] - metrics[0, 1:], "noise"),
            (metrics[1, 1:] - ends[1], "denoise"),
        )
    )
    aligned = np.array([len(places) for places in maps[0]])
    return Interchange(necessity=necessity, sufficiency=sufficiency, aligned=aligned)


def align_ends(model: LanguageModel, task: Task) -> list[dict[int, int]]:
    """An alignment of prompts that share their beginning and their end, such as a template.

    The shared first tokens are aligned, and the shared last tokens. The tokens between are aligned
    only if both prompts have the same length.
    """
    sides = both_sides(model, task)
    maps = []
    for clean, corrupted in zip(sides.clean, sides.corrupted, strict=True):
        shorter = min(len(clean), len(corrupted))
        if len(clean) == len(corrupted):
            maps.append({i: i for i in range(shorter)})
            continue
        begin = len(commonprefix([clean, corrupted]))
        end = min(len(commonprefix([clean[::-1], corrupted[::-1]])), shorter - begin)
        tail = {len(clean) - i: len(corrupted) - i for i in range(1, end + 1)}
        maps.append({i: i for i in range(begin)} | tail)
    return maps


def _checked(sides: Sides, alignment: Alignment | None) -> tuple[Alignment, Alignment]:
    """The aligned tokens of each pair, from clean to corrupted tokens and the other way round."""
    lengths = [(len(a), len(b)) for a, b in zip(sides.clean, sides.corrupted, strict=True)]
    if alignment is None:
        for i, (a, b) in enumerate(lengths):
            if a != b:
                raise InterpError(
                    f"interchange on pair {i}",
                    f"clean has {a} tokens, corrupted {b}",
                    "say which tokens correspond: alignment=align_ends(model, task), or yours",
                )
        alignment = [dict(zip(range(a), range(a), strict=True)) for a, _ in lengths]
    if len(alignment) != len(lengths):
        found = f"{len(alignment)} maps for {len(lengths)} pairs"
        raise InterpError("an alignment", found, "give one for each pair")
    for i, ((a, b), places) in enumerate(zip(lengths, alignment, strict=True)):
        inside = all(0 <= x < a and 0 <= y < b for x, y in places.items())
        if not places or not inside or len(set(places.values())) < len(places):
            raise InterpError(
                f"the alignment of pair {i}",
                "empty, tokens that do not exist, or one used twice",
                f"map tokens below {a} to different tokens below {b}",
            )
    return alignment, [{b: a for a, b in places.items()} for places in alignment]


@dataclass(frozen=True, kw_only=True)
class GroupInterchange:
    """Some heads exchanged together, as fractions of the gap, and random heads as a null."""

    heads: tuple[str, ...]
    necessity: Estimate
    sufficiency: Estimate
    necessity_null: Null | None
    sufficiency_null: Null | None


def group_interchange(
    model: LanguageModel,
    task: Task,
    heads: Sequence[str],
    *,
    alignment: Alignment | None = None,
    draws: int = 20,
    seed: int = 0,
) -> GroupInterchange:
    """Necessity and sufficiency of some heads together: `head_interchange` for a set.

    Random sets have as many other heads of the same layers. To judge a selection, give held-out
    pairs, which were not used for it.

    Raises:
        InterpError: see `head_interchange`; no heads, or sides that do not differ.
    """
    sides = both_sides(model, task)
    maps = _checked(sides, alignment)
    heads = listed(heads)
    sets = [heads, *random_like(model, heads, draws, seed=seed)]
    parts = [model.require_parts(labels, "z") for labels in sets]
    measured = _by_hooks if model.decoder is None else _by_engine
    noised, denoised = measured(model, task, sides, maps, parts)
    check_gap(noised[0].numpy(), denoised[0].numpy())
    gaps = noised[0] - denoised[0]
    gained = (noised[0] - noised[1:], denoised[1:] - denoised[0])
    found = [ratio_estimate(of[0], gaps) for of in gained]
    random = [[float(one.mean() / gaps.mean()) for one in of[1:]] for of in gained]
    nulls = [
        null_of(own.mean, np.array(drawn)) if drawn else None
        for own, drawn in zip(found, random, strict=True)
    ]
    return GroupInterchange(
        heads=tuple(map(str, parts[0])),
        necessity=found[0],
        sufficiency=found[1],
        necessity_null=nulls[0],
        sufficiency_null=nulls[1],
    )


def _by_engine(
    model: LanguageModel,
    task: Task,
    sides: Sides,
    maps: tuple[Alignment, Alignment],
    groups: Sequence[Sequence[Component]],
    *,
    alone: bool = False,
    progress: Progress | None = None,
) -> Tensor:
    """(2, 1 + groups, prompts) metrics of both sides: plain, and with each group exchanged.

    With `alone`, every group is one head. Its value at tokens without a counterpart is then taken
    from the plain run, and not computed again.
    """
    decoder = model.require_decoder("interchange of heads")
    model.refuse_changed("interchange of heads", HOOKED)
    runner = Runner(decoder)
    found = torch.zeros(2, 1 + len(groups), len(task), dtype=torch.float64)
    with torch.no_grad():
        for i, prompts in enumerate(zip(sides.clean, sides.corrupted, strict=True)):
            runs = [baseline(runner, [prompt], frozenset({"z"})) for prompt in prompts]
            targets = sides.targets.select(torch.full((1 + len(groups),), i))
            for side, run in enumerate(runs):
                own, other = (
                    {k: one.site(k, "z")[None] for k in range(model.n_layers)}
                    for one in (run, runs[1 - side])
                )
                places = [maps[side][i]]
                changes = [_exchange(g, places, other, own if alone else None) for g in groups]
                hidden = [final_hidden(runner, run), changed_runs(runner, run, changes)]
                readout = LogitsOf(decoder=decoder, hidden=torch.cat(hidden))
                found[side, :, i] = task.metric(readout, targets)
            if progress is not None:
                progress(i + 1, len(task))
    return found


def _by_hooks(
    model: LanguageModel,
    task: Task,
    sides: Sides,
    maps: tuple[Alignment, Alignment],
    groups: Sequence[Sequence[Component]],
) -> Tensor:
    """What `_by_engine` gives, on any model."""
    layers = {part.layer for group in groups for part in group}
    found = []
    for places, own, others in zip(
        maps, (sides.clean, sides.corrupted), (sides.corrupted, sides.clean), strict=True
    ):
        seen = run_with_cache(model, others, sites=["z"], layers=layers)
        other = {layer: seen[layer, "z"] for layer in layers}
        for group in ((), *groups):
            with intervene(model, _exchange(group, places, other)):
                logits = model.last_logits(own)
            found.append(task.metric(Logits(logits.cpu()), sides.targets))
    return torch.stack(found).unflatten(0, (2, -1))


def _exchange(
    heads: Sequence[Component],
    places: Alignment,
    other: Mapping[int, Tensor],
    own: Mapping[int, Tensor] | None = None,
) -> Change:
    """Heads take the values of the other prompt of a pair at the tokens that `places` aligns.

    `other` holds, by layer, z of the other prompts: (prompts, tokens, heads, d_head). Tokens
    without a counterpart take their value from `own`, or keep it.
    """

    def value(head: Component, old: Tensor, tokens: Tokens) -> Tensor:
        prompts, positions = tokens.prompts.tolist(), tokens.positions.tolist()
        there = [places[i].get(at, -1) for i, at in zip(prompts, positions, strict=True)]
        here = [row for row, at in enumerate(there) if at >= 0]
        new = old.clone() if own is None else own[head.layer][prompts, positions, head.index]
        taken = [prompts[row] for row in here], [there[row] for row in here]
        new[here] = other[head.layer][(*taken, head.index)].to(new)
        return new

    edits = tuple(one_edit("interchange", head, partial(value, head)) for head in heads)
    return Change(name="interchange", edits=edits)

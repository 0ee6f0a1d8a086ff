"""Which heads trigger a refusal: their values exchanged between the two prompts of each pair.

Necessity: what a refused prompt loses when a head takes its value from the answered one.
Sufficiency: what the answered prompt gains from the refused one's. A head that opens a gate for
others is found here, and missed by direct attribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from interp.core.statistics import Estimate, ratio_estimate
from interp.engine.forward import Baseline, Runner
from interp.engine.readout import LogitsOf, Progress
from interp.engine.restart import baseline, final_hidden
from interp.heads.switching import HeadValues, Sides, both_sides, changed_runs, head_scores
from interp.models.language_model import HOOKED, LanguageModel
from interp.results.scores import Scores
from interp.runs.capture import run_with_cache
from interp.runs.change import Change, Edit, Tokens
from interp.runs.hooks import intervene
from interp.runs.kinds import one_edit, random_like
from interp.runs.pairs import check_gap

Alignment = Sequence[Mapping[int, int]]
"""For each pair: token of the clean prompt -> the token of the corrupted prompt it stands for."""


@dataclass(frozen=True, kw_only=True)
class Interchange:
    """Every head's value exchanged between the two prompts of each pair.

    necessity: m(clean) - m(clean with the head's value from corrupted). sufficiency:
    m(corrupted with it from clean) - m(corrupted). aligned: (n,) tokens exchanged in each pair.
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

    The metric is the task's and is named in the result; published percentages differ with it.
    Pairs of equal length need no alignment, and then this equals `activation_patching` of z. For
    others it must be said which tokens stand for which (see `align_ends`): aligning from the start
    and cutting the longer prompt, as released code does, misaligns the template's last tokens.
    Tokens that stand for none keep their value.

    Args:
        model: a model with a fast engine.
        task: clean prompts show the behaviour, corrupted ones do not.
        alignment: one map for each pair.
        layers: which; all by default.
        progress: called with (prompts done, prompts in all).

    Raises:
        InterpError: unequal lengths without an alignment, tokens that do not exist or are used
            twice, no fast engine, or inside `intervene`.

    Source: arXiv 2604.04385 (gregfrank/how-alignment-routes).
    """
    decoder = model.require_decoder("interchange of heads")
    model.refuse_changed("interchange of heads", HOOKED)
    sides, runner = both_sides(model, task), Runner(decoder)
    maps = _checked(sides, alignment)
    chosen = within(layers, model.n_layers, "layer", model.name)
    effects = np.zeros((2, len(task), len(chosen) * model.n_heads))
    ends = np.zeros((2, len(task)))
    with torch.no_grad():
        for i, pairs in enumerate(maps):
            runs = [
                baseline(runner, [side[i]], frozenset({"z"}))
                for side in (sides.clean, sides.corrupted)
            ]
            targets = sides.targets.select(torch.full((effects.shape[2],), i))
            for side, sign in enumerate((1, -1)):
                places = pairs if side == 0 else _turned(pairs)
                plain = final_hidden(runner, runs[side]).expand(effects.shape[2], -1)
                changes = [
                    HeadValues(layer=k, heads=(h,), values=_taken(runs, side, k, h, places))
                    for k in chosen
                    for h in range(model.n_heads)
                ]
                hidden = changed_runs(runner, runs[side], changes)
                before, after = (
                    task.metric(LogitsOf(decoder=decoder, hidden=x), targets).numpy()
                    for x in (plain, hidden)
                )
                ends[side, i], effects[side, i] = before[0], sign * (before - after)
            if progress is not None:
                progress(i + 1, len(task))
    scores = [
        head_scores(
            model,
            task,
            effects[side].reshape(len(task), len(chosen), -1),
            (ends[0], ends[1]),
            method="interchange",
            direction=direction,
            metric=(task.metric.name, task.metric.unit),
            layers=chosen,
            positions="all aligned tokens",
        )
        for side, direction in enumerate(("noise", "denoise"))
    ]
    counts = np.array([len(pairs) for pairs in maps])
    return Interchange(necessity=scores[0], sufficiency=scores[1], aligned=counts)


def _taken(
    runs: Sequence[Baseline], side: int, layer: int, head: int, places: Sequence[tuple[int, int]]
) -> Tensor:
    """(tokens, 1, d_head) a head's values on one side, aligned ones from the other."""
    own, other = (run.site(layer, "z")[:, head] for run in (runs[side], runs[1 - side]))
    return _exchanged(own, other, places)[:, None]


def _exchanged(own: Tensor, other: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    new = own.clone()
    here, there = ([pair[which] for pair in places] for which in (0, 1))
    new[here] = other[there].to(new)
    return new


def _turned(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(b, a) for a, b in places]


def align_ends(model: LanguageModel, task: Task) -> list[dict[int, int]]:
    """An alignment of prompts that share their beginning and their end, such as a template.

    The shared first tokens stand for each other, and the shared last ones; what lies between is
    aligned only where it is equally long.
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


def _checked(sides: Sides, alignment: Alignment | None) -> list[list[tuple[int, int]]]:
    """Aligned (clean, corrupted) tokens of each pair."""
    lengths = [(len(a), len(b)) for a, b in zip(sides.clean, sides.corrupted, strict=True)]
    if alignment is None:
        for i, (a, b) in enumerate(lengths):
            if a != b:
                raise InterpError(
                    f"interchange on pair {i}",
                    f"clean has {a} tokens, corrupted {b}",
                    "say which tokens stand for which: alignment=align_ends(model, task), or yours",
                )
        return [[(i, i) for i in range(a)] for a, _ in lengths]
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
    return [sorted(places.items()) for places in alignment]


@dataclass(frozen=True, kw_only=True)
class GroupInterchange:
    """Some heads exchanged together, as fractions of the gap, against random heads like them."""

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

    Random sets have as many other heads of the same layers. To judge a selection, give pairs it
    was not selected on.

    Raises:
        InterpError: see `head_interchange`; no heads, or sides that do not differ.
    """
    sides = both_sides(model, task)
    maps = _checked(sides, alignment)
    heads = listed(heads)
    sets = [heads, *random_like(model, heads, draws, seed=seed)]
    parts = [model.require_parts(labels, "z") for labels in sets]
    measured = _by_hooks if model.decoder is None else _by_engine
    values = [measured(model, task, sides, maps, side, [(), *parts]) for side in (0, 1)]
    plain = [side[0] for side in values]
    check_gap(plain[0].numpy(), plain[1].numpy())
    gaps = plain[0] - plain[1]
    changed = [[side[1 + k] for side in values] for k in range(len(parts))]
    gained = [[plain[0] - noised, denoised - plain[1]] for noised, denoised in changed]
    found = [ratio_estimate(gained[0][side], gaps) for side in (0, 1)]
    nulls = [
        null_of(found[side].mean, np.array([float(g[side].mean() / gaps.mean()) for g in random]))
        if (random := gained[1:])
        else None
        for side in (0, 1)
    ]
    return GroupInterchange(
        heads=tuple(map(str, parts[0])),
        necessity=found[0],
        sufficiency=found[1],
        necessity_null=nulls[0],
        sufficiency_null=nulls[1],
    )


Group = Sequence[Component]


def _by_engine(
    model: LanguageModel,
    task: Task,
    sides: Sides,
    maps: Sequence[Sequence[tuple[int, int]]],
    side: int,
    groups: Sequence[Group],
) -> list[Tensor]:
    """(n,) metrics of one side's prompts with each group exchanged; the first group is empty."""
    decoder = model.require_decoder("interchange of heads")
    model.refuse_changed("interchange of heads", HOOKED)
    runner = Runner(decoder)
    found = torch.zeros(len(groups), len(maps), dtype=torch.float64)
    with torch.no_grad():
        for i, pairs in enumerate(maps):
            runs = [
                baseline(runner, [prompts[i]], frozenset({"z"}))
                for prompts in (sides.clean, sides.corrupted)
            ]
            places = pairs if side == 0 else _turned(pairs)
            at = tuple(here for here, _ in places)
            changes = [
                [
                    HeadValues(
                        layer=part.layer,
                        heads=(part.index or 0,),
                        values=_taken(runs, side, part.layer, part.index or 0, places),
                        at=at,
                    )
                    for part in group
                ]
                for group in groups[1:]
            ]
            hidden = [final_hidden(runner, runs[side]), changed_runs(runner, runs[side], changes)]
            targets = sides.targets.select(torch.full((len(groups),), i))
            readout = LogitsOf(decoder=decoder, hidden=torch.cat(hidden))
            found[:, i] = task.metric(readout, targets)
    return list(found)


def _by_hooks(
    model: LanguageModel,
    task: Task,
    sides: Sides,
    maps: Sequence[Sequence[tuple[int, int]]],
    side: int,
    groups: Sequence[Group],
) -> list[Tensor]:
    """The same on any model."""
    layers = {part.layer for group in groups for part in group}
    prompts = (sides.clean, sides.corrupted)
    other = run_with_cache(model, prompts[1 - side], sites=["z"], layers=layers)

    def exchange(part: Component) -> Edit:
        def value(old: Tensor, tokens: Tokens) -> Tensor:
            prompt = int(tokens.prompts[0])
            places = maps[prompt] if side == 0 else _turned(maps[prompt])
            return _exchanged(old, other[part.layer, "z"][prompt, :, part.index], places)

        return one_edit("interchange", part, value, by_token=False)

    found = []
    for group in groups:
        change = Change(name="interchange", edits=tuple(exchange(part) for part in group))
        with intervene(model, change):
            logits = model.last_logits(prompts[side])
        found.append(task.metric(Logits(logits.cpu()), sides.targets))
    return found

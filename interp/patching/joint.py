"""The effect of patching several components together, compared with random sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from interp.core.arguments import listed, reads_arguments
from interp.core.branches import sizes_of, tail_of
from interp.core.components import Component
from interp.core.errors import InterpError
from interp.core.nulls import FlipTest, Null, flip_test, matched_components, null_of
from interp.core.prompts import Task
from interp.core.run_options import Progress, RunOptions
from interp.core.schema import Brief
from interp.core.statistics import Estimate, ratio_estimate
from interp.engine.forward import Baseline, Replacement, Runner
from interp.engine.memory import says_too_little
from interp.engine.readout import CPU_TILE, LogitsOf
from interp.engine.restart import Variants, baseline, final_hidden, restart
from interp.models.language_model import LanguageModel
from interp.results.prompt_effects import EffectUnit, require_unit
from interp.runs.pairs import PatchDirection, check_gap, paired_runs, warn_gap
from interp.runs.parts import TaskPart, by_parts


@dataclass(frozen=True, kw_only=True)
class JointEffect:
    """The effect of patching a set of components together, and that of random sets.

    Attributes:
        components: the labels patched.
        effect: the effect in `unit`, with its 95 % interval over prompts.
        flips: a test that the effect is above 0, by flipping the signs of the prompts' effects.
            Its p-value is valid on prompts that the set was not selected on.
        null: the effect's rank among random sets of the same kind, layers and size. It is not a
            p-value. None if no random sets were drawn.
        unit: "gap" or "metric".
    """

    components: tuple[str, ...]
    effect: Estimate
    flips: FlipTest
    null: Null | None
    unit: str = "gap"

    def __str__(self) -> str:
        random = "" if self.null is None else f"; random sets {self.null.beside}"
        unit = "" if self.unit == "gap" else " in the metric's unit"
        return f"{', '.join(self.components)}: {self.effect}{unit}; {self.flips}{random}"


JOINT_SITES = (
    "resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "post", "router", "expert_out",
    "mlp_out", "resid_post",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SetEffects(Brief):
    """The metric gained when the components of each set are patched together.

    Attributes:
        gained: (sets, n) in the metric's unit; positive supports the behaviour.
        clean, corrupted: (n,) metric of the two plain runs.
    """

    gained: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray


@reads_arguments
@says_too_little
def joint_patching(
    model: LanguageModel,
    task: Task,
    components: Sequence[str],
    *,
    direction: PatchDirection = "denoise",
    unit: EffectUnit = "gap",
    draws: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
    workers: int = 0,
) -> JointEffect:
    """Patch a set of components together at all tokens, and random sets for comparison.

        effect(C) = mean(m[base with every c in C := other] - m[base]) / mean(m[clean] - m[corr.])

    Unit: fraction of the gap, or the metric's own unit, without the denominator. A random set
    replaces every component by an unlisted one of the same site and layer, and a whole site such as
    mlp_out by that of another layer; see `interp.core.nulls.matched_components`.

    Args:
        model: a model with a fast engine.
        task: prompt pairs. To test a selection, use pairs that it was not selected on.
        components: labels such as L9H6, L9KV2.k, L7N12, L5.mlp_out.
        direction: "denoise" or "noise", with the sign of `activation_patching`.
        unit: "gap" or "metric", as in `activation_patching`.
        draws: number of random sets; 0 for none.
        seed: seed of the random sets and the sign flips.
        progress: called with (runs done, runs in total).
        workers: processes that share the prompts, as in `attribution_patching`.

    Raises:
        InterpError: no fast engine, no components, unknown components, a site other than
            `JOINT_SITES`, a gap below its standard error, or a call inside `intervene`.
    """
    require_unit(unit)
    model.require_decoder("joint patching")
    chosen = components_of(model, listed(components))
    rng = np.random.default_rng(seed)
    random = (matched_components(chosen, model.n_layers, model.size, rng) for _ in range(draws))
    found = set_effects(model, task, [chosen, *random], direction, progress, workers=workers)
    (check_gap if unit == "gap" else warn_gap)(found.clean, found.corrupted)
    gaps = found.clean - found.corrupted if unit == "gap" else np.ones(len(task))
    own, others = found.gained[0], found.gained[1:]
    effect = ratio_estimate(own, gaps)
    return JointEffect(
        components=tuple(map(str, chosen)),
        effect=effect,
        flips=flip_test(lambda signs: signs @ own / gaps.sum(), len(task), seed=seed),
        null=null_of(effect.mean, others.mean(1) / gaps.mean()) if draws else None,
        unit=unit,
    )


def components_of(model: LanguageModel, labels: Sequence[str]) -> list[Component]:
    """The components with these labels, of sites that can be patched together.

    Raises:
        InterpError: no labels, unknown components, or a site other than `JOINT_SITES`.
    """
    chosen = [Component.parse(label) for label in labels]
    if not chosen or any(part.site not in JOINT_SITES for part in chosen):
        raise InterpError(
            f"patching {list(labels)} together",
            f"sites {sorted({part.site for part in chosen})}",
            f"give components of {', '.join(JOINT_SITES)}",
        )
    for part in chosen:
        model.require_component(part)
    return chosen


def set_effects(
    model: LanguageModel,
    task: Task,
    sets: Sequence[Sequence[Component]],
    direction: str,
    progress: Progress | None = None,
    *,
    at: Sequence[int | None] | None = None,
    zero: bool = False,
    workers: int = 0,
) -> SetEffects:
    """Patch every set of components, exactly, one set at a time.

    Args:
        model: a model with a fast engine.
        task: prompt pairs.
        sets: the components of each set.
        direction: "denoise" or "noise".
        progress: called with (runs done, runs in total).
        at: for each set the token that is patched; None, here or for a set: all tokens.
        zero: the components are set to zero instead; prompts may then lack corrupted ones.
        workers: processes that share the prompts; only without `at`.

    Raises:
        InterpError: no fast engine, an unknown direction, or a call inside `intervene`.
    """
    model.refuse_changed("joint patching", "patch() inside intervene, and last_logits()")
    places = [None] * len(sets) if at is None else [*at]
    if workers:
        work = partial(_part, sets=tuple(map(tuple, sets)), direction=direction, zero=zero)
        options = RunOptions(progress=progress)
        found = np.concatenate([*by_parts(work, model, task, workers=workers, options=options)]).T
        return SetEffects(clean=found[0], corrupted=found[1], gained=found[2:])
    runs = paired_runs(model, task, direction, unpaired=zero, strings=True)
    runner = Runner(model.require_decoder("joint patching"))
    patched = frozenset(part.site for parts in sets for part in parts)
    sites = patched - {"resid_post"} | {"resid_pre"}
    gained = np.zeros((len(sets), len(task)))
    ends = np.zeros((2, len(task)))
    with torch.no_grad():
        for prompt in range(len(task)):

            def metric(hidden: torch.Tensor, prompt: int = prompt) -> np.ndarray:
                tail = tail_of(sizes_of(runs.base[prompt]))
                targets = runs.targets.select(torch.full((len(hidden) // tail,), prompt))
                readout = LogitsOf(decoder=runner.decoder, hidden=hidden)
                return task.metric(readout, targets).numpy()

            base, other = (
                baseline(runner, [side[prompt]], sites) for side in (runs.base, runs.other)
            )
            ends[:, prompt] = [metric(final_hidden(runner, run))[0] for run in (base, other)]
            start = 0 if zero else int(runs.differ[prompt])
            step = max(1, CPU_TILE // len(runs.base[prompt]))
            for begin in range(0, len(sets), step):
                some = sets[begin : begin + step]
                here = places[begin : begin + step]
                hidden = _patched(runner, base, None if zero else other, some, start, here)
                gained[begin : begin + step, prompt] = metric(hidden) - ends[0, prompt]
                if progress is not None:
                    done = prompt * len(sets) + min(begin + step, len(sets))
                    progress(done, len(sets) * len(task))
    denoise = direction == "denoise"
    clean, corrupted = ends[::-1] if denoise else ends
    return SetEffects(gained=gained * (1 if denoise else -1), clean=clean, corrupted=corrupted)


def _part(
    model: LanguageModel,
    part: TaskPart,
    *,
    sets: Sequence[Sequence[Component]],
    direction: str,
    zero: bool,
) -> np.ndarray:
    """(prompts, 2 + sets): both plain metrics of a part, then what every set gains."""
    found = set_effects(model, part[0], sets, direction, zero=zero)
    return np.stack([found.clean, found.corrupted, *found.gained], axis=1)


def _patched(
    runner: Runner,
    base: Baseline,
    other: Baseline | None,
    sets: Sequence[Sequence[Component]],
    first: int,
    at: Sequence[int | None],
) -> torch.Tensor:
    """(sets, d_model) final hidden states when each set takes its values from the other run.

    At its token in `at`, or from token `first` on; zeros where there is no other run.
    """
    length = int(base.lengths[0])
    if first >= length:
        return final_hidden(runner, base).repeat(len(sets), 1)
    run = base if other is None else other
    edits: dict[int, list[Replacement]] = {}
    for number, (parts, place) in enumerate(zip(sets, at, strict=True)):
        positions = np.arange(first, length) if place is None else np.array([place])
        for part in parts:
            values = run.site(part.layer, part.site)[positions] * (other is not None)
            index = part.index
            edits.setdefault(part.layer, []).append(
                Replacement(
                    site=part.site,
                    ids=np.full_like(positions, number),
                    positions=positions,
                    values=values if index is None else values[:, index],
                    components=None if index is None else np.full(len(positions), index),
                )
            )
    variants = Variants(
        prompt=np.zeros(len(sets), dtype=np.int64),
        start=np.array([first if place is None else place for place in at]),
        layer=np.array([min(part.layer for part in parts) for parts in sets]),
        ready=np.zeros(len(sets), dtype=bool),
    )
    return restart(runner, base, variants, edits=edits)

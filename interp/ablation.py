"""Sets of components set to something else together, and what that does to the next token.

One description, `Ablation`, serves the fast engine here, cached generation
(`interp.generation`) and, as plain interventions, `interp.interventions.intervene`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from interp.ablated_runs import changed_states, starts
from interp.components import SITES, Component
from interp.engine.decode import CHANGEABLE, Change, Changes
from interp.engine.forward import Baseline, Runner
from interp.engine.memory import keep_freed_memory, says_too_little
from interp.engine.restart import final_hidden
from interp.engine.sweep import CPU_TILE, Progress
from interp.errors import InterpError, unknown
from interp.inputs import listed, reads_arguments, rows_of
from interp.interventions import Intervention, Operation
from interp.kept_runs import BLOCK, KeptRuns, plain_runs
from interp.models.language_model import Address, LanguageModel
from interp.nulls import matched_components
from interp.prompts import Prompt, Task

BUDGET = 2e9
"""Bytes that captured sites of the tokens run at once may take."""

ROWS = 256
"""Next tokens read at once: the unembedding is a product with as many rows."""

Kind = Literal["zero", "mean", "resample", "patch", "steer"]
Where = int | Literal["all"]
"""Which tokens: the last k of the prompt (or, while generating, up to the trigger), or all."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The components of one layer and site, and their new values.

    `values` is (prompts or 1, positions or 1, components, width); a neuron's width is 1. Its
    last position is the last token changed. `components` is None for a whole site.
    """

    components: np.ndarray | None
    values: Tensor


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Components, and what they are set to (or, for `steer`, what is added to them)."""

    name: str
    kind: Kind
    components: tuple[str, ...]
    parts: Mapping[Address, Part]

    @property
    def first_layer(self) -> int:
        """The lowest layer changed; nothing below it can differ."""
        return min(layer for layer, _ in self.parts)

    def require(self, prompts: int, where: Where) -> None:
        """Refuse values that do not fit so many prompts, or fewer positions than are changed.

        Raises:
            InterpError: either.
        """
        for (layer, site), part in self.parts.items():
            rows, width = part.values.shape[:2]
            short = width > 1 and (where == "all" or width < where)
            if rows not in (1, prompts) or short:
                raise InterpError(
                    f"{self.name}: values of L{layer}.{site} over {rows} prompts and {width} "
                    "positions",
                    f"{prompts} prompts, where={where!r}",
                    "give one value for all, or one for each prompt and each position changed",
                )

    def new(self, address: Address, old: Tensor, prompts: Tensor, back: Tensor) -> Tensor:
        """The new value of a whole site.

        Args:
            address: layer and site.
            old: (..., width) or (..., heads, d_head), leading axes as `prompts` and `back`.
            prompts: prompt numbers.
            back: how many tokens before the last changed one each token stands.
        """
        part = self.parts[address]
        values = part.values.to(old)
        row = prompts if len(values) > 1 else torch.zeros_like(prompts)
        width = values.shape[1]
        column = width - 1 - back if width > 1 else torch.zeros_like(back)
        taken = values[row, column.clamp(min=0)]
        if part.components is None:
            taken = taken.reshape(old.shape)
            return old + taken if self.kind == "steer" else taken
        chosen = torch.from_numpy(part.components).to(old.device)
        changed = old.clone()
        if SITES[address[1]] == "neuron":
            taken = taken[..., 0]
            changed[..., chosen] = changed[..., chosen] + taken if self.kind == "steer" else taken
        else:
            base = changed[..., chosen, :] if self.kind == "steer" else 0
            changed[..., chosen, :] = base + taken
        return changed

    def interventions(self, lengths: Sequence[int], where: Where) -> list[Intervention]:
        """The same as plain interventions on prompts of these lengths: the slow way.

        For prompts run whole; one intervention per component and, if `where` is a number, per
        token.
        """
        made = []
        for address, part in self.parts.items():
            numbers = [None] if part.components is None else part.components.tolist()
            for place, number in enumerate(numbers):
                component = Component(address[0], address[1], number)
                for back in [None] if where == "all" else range(int(where)):
                    positions = "all" if back is None else [n - 1 - back for n in lengths]
                    made.append(
                        Intervention(
                            name=self.kind,
                            component=component,
                            operation=self._operation(part, place, lengths),
                            positions=positions,
                        )
                    )
        return made

    def _operation(self, part: Part, place: int, lengths: Sequence[int]) -> Operation:
        def operation(old: Tensor, prompt: int, where: list[int]) -> Tensor:
            values = part.values[prompt if len(part.values) > 1 else 0].to(old)
            width = len(values)
            rows = [
                values[max(0, width - lengths[prompt] + p) if width > 1 else 0, place]
                for p in where
            ]
            new = torch.stack(rows).view_as(old)
            return old + new if self.kind == "steer" else new

        return operation


@reads_arguments
def make_ablation(
    model: LanguageModel,
    components: Sequence[str],
    kind: Kind = "zero",
    *,
    values: Mapping[Address, Tensor] | None = None,
    name: str = "",
) -> Ablation:
    """A set of components and their new values.

    Args:
        model: the model they belong to.
        components: labels such as L17H11, L26N6475, L5.resid_post; one label is a set of one.
        kind: "zero"; or "mean", "resample", "patch" and "steer", which take `values`.
        values: whole sites, as `site_values` gives them: (prompts or 1, positions or 1, ...).
        name: shown in tables; the kind and the components by default.

    Raises:
        InterpError: no components, one twice, an unknown kind, a site that cannot be set while
            decoding, a component the model lacks, or values missing.
    """
    components = listed(components)
    parts = [Component.parse(label) for label in components]
    if kind not in ("zero", "mean", "resample", "patch", "steer"):
        raise unknown("kind of ablation", kind, ("zero", "mean", "resample", "patch", "steer"))
    if not parts or len(set(parts)) < len(parts):
        raise InterpError(f"ablating {list(components)}", "none, or one twice", "give each once")
    grouped: dict[Address, list[int | None]] = {}
    for part in parts:
        if part.site not in CHANGEABLE:
            raise InterpError(f"ablating {part}", f"site {part.site}", f"use {CHANGEABLE}")
        model.require_component(part)
        grouped.setdefault((part.layer, part.site), []).append(part.index)
    made: dict[Address, Part] = {}
    for address, numbers in grouped.items():
        if len(numbers) > 1 and None in numbers:
            raise InterpError(f"ablating {list(components)}", "a site and a part of it", "choose")
        chosen = None if numbers[0] is None else np.array(numbers)
        if kind == "zero":
            width = _width(model, address[1], chosen is None)
            count = 1 if chosen is None else len(chosen)
            taken = torch.zeros(1, 1, count, width, dtype=model.dtype)
        elif values is None or address not in values:
            raise InterpError(
                f"{kind} ablation of L{address[0]}.{address[1]}", "no values", "give site_values"
            )
        else:
            taken = _of_parts(values[address], address[1], chosen)
        made[address] = Part(components=chosen, values=taken)
    return Ablation(
        name=name or f"{kind} {', '.join(components)}",
        kind=kind,
        components=tuple(map(str, parts)),
        parts=made,
    )


def site_values(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    addresses: Sequence[Address],
    *,
    last: int = 1,
    runs: KeptRuns | None = None,
) -> dict[Address, Tensor]:
    """Sites at the last k tokens of every prompt: (prompts, k, ...). For `make_ablation`.

    Their mean over the first axis (kept) gives mean ablation, a permutation of it resampling, and
    the values of paired prompts a patch. They are read in `runs` where these are given.

    Raises:
        InterpError: a prompt shorter than `last`, no fast engine, or runs that do not fit.
    """
    prompts = rows_of(model, prompts)
    if runs is not None:
        runs.require(prompts, last, "reading")
        return {address: value[:, -last:] for address, value in runs.read(addresses).items()}
    model.refuse_changed("reading site values", "run_with_cache()")
    runner = Runner(model.require_decoder("reading site values"))
    if min(map(len, prompts)) < last:
        raise InterpError(f"the last {last} tokens", "a shorter prompt", "lower last")
    found: dict[Address, list[Tensor]] = {address: [] for address in addresses}
    sites = frozenset(site for _, site in addresses) - {"resid_post"}
    kept = sum(_width(model, site, True) for site in sites | {"resid_pre"}) * model.n_layers
    tokens = max(1, min(BLOCK, int(BUDGET / (4 * kept))))
    blocks = []
    with torch.no_grad():
        for block, base in plain_runs(runner, prompts, sites=sites, tokens=tokens):
            blocks.append(block)
            ends = torch.from_numpy(base.offset + base.lengths)
            at = ends[:, None] - torch.arange(last, 0, -1)
            for address in addresses:
                found[address].append(base.site(*address)[at.to(runner.device)])
    # Blocks are sorted by length: back to the order of the prompts.
    back = torch.from_numpy(np.argsort(np.concatenate(blocks))).to(runner.device)
    return {address: torch.cat(pieces)[back] for address, pieces in found.items()}


@dataclass(frozen=True, kw_only=True)
class NextTokens:
    """The next token of every prompt under every ablation; the first row is the plain run.

    probabilities: (1 + ablations, prompts, tokens) of the tokens asked for, in float64.
    top: (1 + ablations, prompts) most likely token. kl: KL(plain || ablated) in nats.
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    top: np.ndarray
    kl: np.ndarray

    @property
    def log_odds(self) -> np.ndarray:
        """(1 + ablations, prompts) log P(first token) - log P(second token)."""
        logs = np.log(np.maximum(self.probabilities, 1e-30))
        return logs[..., 0] - logs[..., 1]


@reads_arguments
@says_too_little
def ablate(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    ablations: Ablation | Sequence[Ablation],
    *,
    tokens: str | int | Sequence[str | int],
    where: Where = "all",
    runs: KeptRuns | None = None,
    progress: Progress | None = None,
) -> NextTokens:
    """What each set of components, changed together, does to the next token.

    Exact: every prompt is run once, and each ablation re-runs only the layers and tokens that can
    differ. It equals one hooked forward pass per ablation and prompt.

    Args:
        model: a model with a fast engine.
        prompts: texts, token ids or a task (its clean prompts); the next token of each is read.
        ablations: sets from `make_ablation`; values per prompt are in the order of `prompts`.
        tokens: whose probabilities are reported: texts of one token each, or ids.
        where: "all" tokens of the prompt, as a hook without positions; or the last k.
        runs: plain runs of these prompts (`interp.kept_runs.keep_runs`); made anew without.
        progress: called with (prompts done, prompts in all).

    Raises:
        InterpError: no fast engine, no prompts, a prompt shorter than `where`, values for other
            numbers of prompts or positions, runs of other prompts or of fewer last tokens, or
            inside `intervene`.
    """
    model.refuse_changed(
        "ablating", "last_logits(), which sees them, with Ablation.interventions()"
    )
    runner = Runner(model.require_decoder("ablating sets of components"))
    prompts, ablations = rows_of(model, prompts), listed(ablations)
    if not prompts or (where != "all" and not 1 <= where <= min(map(len, prompts))):
        raise InterpError(
            f"ablating the last {where} tokens of {len(prompts)} prompts",
            f"lengths {sorted({len(p) for p in prompts})[:5]}",
            "give prompts at least that long",
        )
    for ablation in ablations:
        ablation.require(len(prompts), where)
    if runs is not None:
        runs.require(prompts, where if ablations else 1, "ablating")
    keep_freed_memory()
    rows = 1 + len(ablations)
    ids = [model.single_token(token) for token in listed(tokens)]
    shown = torch.tensor(ids, device=runner.device)
    probabilities = np.zeros((rows, len(prompts), len(shown)))
    top, kl = np.zeros((rows, len(prompts)), dtype=np.int64), np.zeros((rows, len(prompts)))
    done = 0
    with torch.no_grad():
        for block, base in plain_runs(runner, prompts) if runs is None else runs.blocks:
            plain = likely = None
            number = 0
            for hidden in _hidden_states(runner, base, ablations, block, where):
                logits = runner.decoder.logits(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
                wide = logits if logits.dtype == torch.float64 else logits.float()
                logs = wide.log_softmax(-1)
                if plain is None or likely is None:
                    plain, likely = logs[0], logs[0].exp()
                here = slice(number, number + len(logs))
                probabilities[here, block] = logs[..., shown].double().exp().cpu().numpy()
                top[here, block] = logs.argmax(-1).cpu().numpy()
                kl[here, block] = (plain - logs).mul_(likely).sum(-1).double().cpu().numpy()
                number = here.stop
            done += len(block)
            if progress is not None:
                progress(done, len(prompts))
    names = ("none", *(ablation.name for ablation in ablations))
    return NextTokens(names=names, probabilities=probabilities, top=top, kl=kl)


def decoding_changes(ablation: Ablation, ends: Tensor) -> Changes:
    """The ablation for `interp.engine.decode`; `ends[name]` is each row's last changed position."""

    def one(address: Address) -> Change:
        def change(value: Tensor, names: Tensor, positions: Tensor) -> Tensor:
            back = (ends[names][:, None] - positions).clamp(min=0)
            return ablation.new(address, value, names[:, None].expand_as(positions), back)

        return change

    return {address: one(address) for address in ablation.parts}


def random_like(
    model: LanguageModel, components: Sequence[str], draws: int, *, seed: int = 0
) -> list[list[str]]:
    """Different random sets matched in kind, layer and count: the null of a selection.

    See `interp.nulls.matched_components`. No set comes twice, so there are fewer than `draws`
    where fewer exist: three heads of a layer of six leave one other set.
    """
    parts, rng = (
        [Component.parse(label) for label in listed(components)],
        np.random.default_rng(seed),
    )
    found: dict[frozenset[Component], list[Component]] = {}
    for _ in range(20 * draws):
        if len(found) == draws:
            break
        drawn = matched_components(parts, model.n_layers, model.size, rng)
        found.setdefault(frozenset(drawn), drawn)
    return [[str(component) for component in drawn] for drawn in found.values()]


def _hidden_states(
    runner: Runner,
    base: Baseline,
    ablations: Sequence[Ablation],
    block: np.ndarray,
    where: Where,
) -> Iterator[Tensor]:
    """Final states of the plain run, then of the ablations: (some, prompts of the block, d_model).

    Several ablations share one pass over the weights, and several rows one unembedding.
    """
    yield final_hidden(runner, base)[None]
    together = max(1, CPU_TILE // int((base.lengths - starts(base.lengths, where)).sum()))
    for first in range(0, len(ablations), together):
        some = ablations[first : first + together]
        hidden = changed_states(runner, base, some, block, where)
        yield from hidden.split(max(1, ROWS // len(block)))


def _of_parts(whole: Tensor, site: str, chosen: np.ndarray | None) -> Tensor:
    if chosen is None:
        return whole.flatten(2)[:, :, None]
    taken = whole[:, :, torch.from_numpy(chosen)]
    return taken[..., None] if SITES[site] == "neuron" else taken


def _width(model: LanguageModel, site: str, whole: bool) -> int:
    if site == "z":
        return model.n_heads * model.d_head if whole else model.d_head
    if site == "post":
        return model.d_mlp if whole else 1
    return model.d_model

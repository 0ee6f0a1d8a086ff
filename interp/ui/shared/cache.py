"""What outlives a rerun: the model, its prompts, plans and results. All `st.cache_*` live here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import streamlit as st

import interp
from interp.core.components import SITES
from interp.core.errors import InterpError
from interp.core.nulls import SelectionTest
from interp.core.positions import Prompt
from interp.core.prompts import EncodedTask, Task, TaskReport
from interp.engine.cost import Cost, pace_of
from interp.heads.view import HeadView, view_head
from interp.models.language_model import LanguageModel
from interp.overview.change_trial import ChangeTrial, DoseCurve, try_changes
from interp.overview.logit_parts import LogitParts
from interp.overview.one_prompt import Look
from interp.overview.two_sets import Contrast
from interp.patching.activation import sweep_key
from interp.patching.calibration import Calibration, calibrate
from interp.patching.path import path_key
from interp.patching.path_cost import path_patching_cost
from interp.patching.path_spec import PathSpec
from interp.patching.spec import PatchSpec
from interp.patching.sweep import cost, make_sweep
from interp.patching.unfinished import UnfinishedSweep, unfinished_sweep
from interp.probing.lens_files import compact_lens, shipped_lens
from interp.probing.lens_readings import LensReading, read_lens
from interp.results.keys import result_key
from interp.results.scores import Ranked, Scores
from interp.results.store import stored
from interp.runs.text_runs import Generation
from interp.ui.shared import early, offered
from interp.ui.shared.jobs import THREADS
from interp.ui.shared.state import Selection, current, fit

T = TypeVar("T")
ESTIMATED = 6
"""Pairs whose gradient gives the first map of a sweep."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model and a task in its tokens; `key` identifies both by content."""

    model: LanguageModel
    task: Task
    encoded: EncodedTask
    key: str

    @property
    def names(self) -> tuple[str, ...]:
        """Named positions that every prompt has."""
        return (*self.task.position_names, "last")

    @property
    def one_length(self) -> bool:
        """Whether all prompts have the same number of tokens."""
        return len({len(tokens) for tokens in self.encoded.clean}) == 1


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep, with what is slow to derive from it."""

    scores: Scores

    @cached_property
    def interval(self) -> Any:
        """(low, high) of every cell."""
        return self.scores.interval()

    @cached_property
    def ranked(self) -> dict[str, Ranked]:
        """Every cell by its label, the strongest first."""
        return {found.label: found for found in self.scores.top(self.scores.values.size)}

    @cached_property
    def test(self) -> Callable[[int, int], SelectionTest]:
        """(k, band) -> what `Scores.null` says of the top k; slow for maps of neurons."""
        return lru_cache(lambda k, band: self.scores.null(k, band=band))


HASHES: dict[Any, Any] = {
    LanguageModel: lambda model: f"{model.hash} {model.name}",
    Task: lambda task: task.hash,
    Opened: lambda open_: open_.key,
}
"""How caches identify models and tasks: by content."""


def _release(model: LanguageModel) -> None:
    """Drop the readings, which hold their model, so that this one leaves the memory."""
    look.clear()
    parts.clear()
    contrast.clear()


@st.cache_resource(
    max_entries=2, show_spinner="Loading and checking the model …", on_release=_release
)
def load_model(name: str, dtype: str) -> LanguageModel:
    """The model in memory, shared by all visitors: two at a time, so that two can be compared."""
    early.wait()
    return offered.load(name, dtype)


def opened() -> Opened:
    """The selected model and task; what else is selected is brought into their range.

    Raises:
        InterpError: the model cannot be loaded, or the task does not fit its tokeniser.
    """
    selection = current()
    assert selection.model is not None
    model = load_model(selection.model, selection.dtype)
    task, encoded, key = _prompts(model, selection.task, **_drawn(selection))
    open_ = Opened(model=model, task=task, encoded=encoded, key=key)
    fit(
        site=[site for site, reason in model.sites.items() if reason is None],
        positions=[name for name in selection.positions if _is_position(encoded, name)],
        layer=range(model.n_layers),
        layers=range(model.n_layers),
        neurons=range(model.d_mlp),
        prompt=range(len(task)),
    )
    return open_


def _is_position(encoded: EncodedTask, name: str) -> bool:
    try:
        encoded.positions(name)
    except InterpError:
        return False
    return True


def _drawn(selection: Selection) -> dict[str, Any]:
    corruption = {"corruption": selection.corruption} if selection.task == "ioi" else {}
    return {"n": selection.n, "seed": selection.seed, **corruption}


@st.cache_resource(max_entries=4, show_spinner="Making the prompts …", hash_funcs=HASHES)
def _prompts(model: LanguageModel, name: str, **options: Any) -> tuple[Task, EncodedTask, str]:
    """A task in a model's tokens, and the key of both; the model itself is not kept."""
    task = interp.load_task(name, model, **options)
    return task, task.encode(model, strings=True), str(result_key("opened", 1, model, task))


@st.cache_resource(max_entries=4, show_spinner="Making the prompts …", hash_funcs=HASHES)
def _others(open_: Opened, name: str, **options: Any) -> Task:
    """Prompts for a mean, none of them in the task."""
    return interp.load_task(name, open_.model, **options).without(open_.task)


def other_pairs(selection: Selection, open_: Opened) -> Task:
    """Pairs of the selected task, none of them selected: drawn with the next seed.

    Raises:
        InterpError: there are no others.
    """
    others = replace(selection, n=2 * selection.n, seed=selection.seed + 1)
    return _others(open_, others.task, **_drawn(others))


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=HASHES)
def report(open_: Opened) -> Future[TaskReport]:
    """Whether the model shows the behaviour, in a thread."""
    return THREADS.submit(open_.task.check, open_.model)


def sweep(selection: Selection, open_: Opened) -> dict[str, Any]:
    """The selection as arguments of `interp.activation_patching`."""
    numbered = SITES[selection.site]
    reference = None
    if selection.source == "mean":
        reference = other_pairs(selection, open_)
    axes = {
        "component": ("layer", numbered),
        "position": ("layer", "position"),
        "component-position": ("layer", numbered, "position"),
        "layer": ("layer",),
    }[selection.by]
    positions: Any = selection.positions or "all"
    if positions == "all" and "position" in axes and not open_.one_length:
        positions = open_.names
    found = {
        "site": selection.site,
        "by": axes,
        "direction": selection.direction,
        "source": selection.source,
        "reference": reference,
        "positions": positions,
        "unit": selection.unit,
    }
    if numbered == "neuron" and numbered in axes:
        found["layers"] = selection.layers or (open_.model.n_layers // 2,)
        if len(selection.neurons) == 2:
            first, last = selection.neurons
            found["components"] = tuple(range(first, last + 1))
    return found


def plan(open_: Opened, arguments: dict[str, Any]) -> tuple[str, Cost]:
    """The key of a sweep's result, and what the sweep will take.

    Raises:
        InterpError: the model or the task does not allow it.
    """
    return _plan(open_, arguments, pace_of("sweep", open_.model.hash, open_.model.device))


@st.cache_resource(max_entries=32, show_spinner=False, hash_funcs=HASHES)
def _plan(open_: Opened, arguments: dict[str, Any], pace: float | None) -> tuple[str, Cost]:
    """A plan at the pace of the last sweep, whose process has noted it."""
    sweep = make_sweep(open_.model, open_.task, PatchSpec(**arguments))
    return str(sweep_key(open_.model, open_.task, sweep)), cost(open_.model, sweep)


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=HASHES)
def estimate(open_: Opened, arguments: dict[str, Any]) -> Future[Scores]:
    """`interp.attribution_patching` of the first few pairs, in the metric's unit, in a thread.

    The result raises `InterpError` where the model has no fast engine, or the sweep no gradient.
    """
    options: dict[str, Any] = arguments | {"unit": "metric"}
    pairs = open_.task.first(ESTIMATED)
    return THREADS.submit(interp.attribution_patching, open_.model, pairs, **options)


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=HASHES)
def unfinished(open_: Opened, arguments: dict[str, Any]) -> UnfinishedSweep:
    """What a running or stopped sweep has kept so far."""
    return unfinished_sweep(open_.model, open_.task, **arguments)


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=HASHES)
def calibration(open_: Opened, arguments: dict[str, Any], _exact: Scores) -> Calibration:
    """How well the estimate of a sweep agrees with its exact effects.

    Raises:
        InterpError: there is no estimate.
    """
    return calibrate(replace(estimate(open_, arguments).result(), unit=_exact.unit), _exact)


def paths(selection: Selection, open_: Opened) -> dict[str, Any]:
    """The selection as arguments of `interp.path_patching`."""
    return {
        "receivers": selection.receivers,
        "senders": selection.senders,
        "direction": selection.direction,
        "positions": selection.positions or "all",
        "unit": selection.unit,
    }


def paths_plan(open_: Opened, arguments: dict[str, Any]) -> tuple[str, Cost]:
    """The key of the result of path patching, and what it will take.

    Raises:
        InterpError: the model or the task does not allow it, or a receiver does not exist.
    """
    return _paths_plan(open_, arguments, pace_of("paths", open_.model.hash, open_.model.device))


@st.cache_resource(max_entries=32, show_spinner=False, hash_funcs=HASHES)
def _paths_plan(open_: Opened, arguments: dict[str, Any], pace: float | None) -> tuple[str, Cost]:
    """A plan at the pace of the last path patching, whose process has noted it."""
    spec = PathSpec(**arguments)
    key = str(path_key(open_.model, open_.task, spec))
    return key, path_patching_cost(open_.model, open_.task, spec)


def result(key: str) -> SweepResult | None:
    """The stored sweep of a key, if there is one."""

    def load(key: str) -> SweepResult | None:
        scores = stored(key)
        return None if scores is None else SweepResult(scores)

    return kept(key, "sweep", load)


def kept(key: str, kind: str, load: Callable[[str], T | None]) -> T | None:
    """What `load` reads by a key, held in memory; None if it is not there or cannot be read."""
    try:
        return _held(key, kind, load)
    except (LookupError, InterpError):
        return None


@st.cache_resource(max_entries=16, show_spinner=False)
def _held(key: str, kind: str, _load: Callable[[str], Any]) -> Any:
    found = _load(key)
    if found is None:
        raise LookupError(f"{kind} {key}")  # absence is not cached
    return found


def forget() -> None:
    """Drop the results held in memory: a file of theirs was deleted."""
    _held.clear()


@st.cache_resource(max_entries=8, show_spinner="Running the prompt …", hash_funcs=HASHES)
def look(
    model: LanguageModel, prompt: Prompt, answer: str | int | None, wrong: str | int | None
) -> Look:
    """One prompt's readings, which are computed when they are shown.

    Raises:
        InterpError: the prompt or a token does not fit the model.
    """
    return interp.look(model, prompt, answer, wrong)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=HASHES)
def parts(
    model: LanguageModel,
    prompt: Prompt,
    answer: str | int | None,
    wrong: str | int | None,
    position: int,
) -> LogitParts:
    """What every part adds after one token of a prompt; several pages show it.

    Raises:
        InterpError: the prompt or a token does not fit the model.
    """
    return look(model, prompt, answer, wrong).attribution(position=position)


@st.cache_resource(max_entries=2, show_spinner=False, hash_funcs=HASHES)
def has_lens(model: LanguageModel) -> bool:
    """Whether a Jacobian lens ships for a model; its maps are not made yet."""
    return compact_lens(model) is not None


@st.cache_resource(max_entries=8, show_spinner="Reading every layer …", hash_funcs=HASHES)
def lens_reading(model: LanguageModel, prompt: Prompt, words: tuple[str | int, ...]) -> LensReading:
    """What the shipped lens and its controls read at every token of a prompt."""
    return read_lens(model, prompt, shipped_lens(model), words=words)


@st.cache_resource(max_entries=8, show_spinner="Comparing the sets …", hash_funcs=HASHES)
def contrast(model: LanguageModel, first: tuple[str, ...], second: tuple[str, ...]) -> Contrast:
    """What separates two sets of prompts.

    Raises:
        InterpError: too few texts, or a model without a fast engine.
    """
    return interp.overview.contrast(model, first, second)


@st.cache_resource(max_entries=64, show_spinner="Looking at the head …", hash_funcs=HASHES)
def head_view(open_: Opened, layer: int, head: int, prompt: int) -> HeadView:
    """One head on one prompt."""
    return view_head(open_.model, open_.task, layer, head, prompt=prompt)


@st.cache_resource(max_entries=8, show_spinner="Running the changes …", hash_funcs=HASHES)
def trial(
    model: LanguageModel, prompt: Prompt, changes: tuple[str, ...], **options: Any
) -> ChangeTrial:
    """Changes tried on one prompt, measured.

    Raises:
        InterpError: see `interp.overview.try_changes`.
    """
    found = try_changes(model, prompt, changes, **options)
    assert len(found.drawn) == len(found.random)  # run here, under the spinner
    return found


@st.cache_resource(max_entries=8, show_spinner="Running every dose …", hash_funcs=HASHES)
def dose_curve(
    model: LanguageModel, prompt: Prompt, changes: tuple[str, ...], **options: Any
) -> DoseCurve:
    """The dose curve of the same changes."""
    return trial(model, prompt, changes, **options).doses()


@st.cache_resource(max_entries=8, show_spinner="Writing three texts …", hash_funcs=HASHES)
def changed_texts(
    model: LanguageModel, prompt: Prompt, changes: tuple[str, ...], most: int, **options: Any
) -> dict[str, Generation]:
    """The texts of a trial."""
    return trial(model, prompt, changes, **options).texts(most)

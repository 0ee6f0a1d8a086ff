"""Independent parts of some work, done by processes of this machine or of a cluster (joblib)."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed, parallel, parallel_config
from threadpoolctl import threadpool_limits

from interp.core.errors import InterpError
from interp.core.run_options import Progress
from interp.core.schema import Count, checked
from interp.engine.stopping import Cancelled
from interp.models.language_model import LanguageModel
from interp.models.loading import load_model

DEATHS = 3
"""Times that processes may die, with no part finished in between, before the work is given up."""

KEPT_MODELS = 2
"""Models that a process keeps; one more, and it drops the one it loaded first."""

Given = TypeVar("Given")
Done = TypeVar("Done")


def spread(
    work: Callable[[LanguageModel, Given], Done],
    model: LanguageModel,
    parts: Sequence[Given],
    *,
    workers: int = 2,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Done]:
    """`work(model, part)` for every part, by several processes; results in the order of the parts.

    Parts must be independent of each other: some of the prompts, seeds of a null, candidate
    circuits, layers of a fit. A part carries the model's name and hash, never the model: every
    process loads it once. Each process computes with one thread, so that results are the same to
    the last bit for any number of processes and any order. A part whose process dies is done again.

    Processes are those of joblib: local ones by default, those of a cluster inside `ray_cluster` or
    `joblib.parallel_config("dask")`.

    Args:
        work: a function; one defined in a notebook, or a lambda, is sent along.
        model: a model that `load_model` finds by its name.
        parts: what `work` is called with.
        workers: number of processes; 1 computes in this one.
        progress: called with (parts done, parts in all).
        cancelled: asked after every part; True stops the work.

    Raises:
        Cancelled: `cancelled` returned True.
        InterpError: the model cannot be loaded by its name, is changed by `intervene`, or processes
            die again and again. Errors of `work` are raised as they are.
    """
    made = each_with_model(
        work, model, parts, workers=workers, progress=progress, cancelled=cancelled
    )
    found = dict(made)
    return [found[i] for i in range(len(parts))]


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Inside, processes are those of a Ray cluster; None changes nothing.

    Parts are sent out in rounds, one for each process. Every machine of the cluster needs
    this version of the package, and the model under the same name.

    Args:
        address: of the cluster, such as "auto" or "ray://host:10001"; "local" starts one on this
            machine, which ends with the block.

    Raises:
        InterpError: Ray is not installed, or there is no cluster at the address.
    """
    if address is None:
        yield
        return
    asked = f"the cluster {address!r}"
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        do = "pip install 'interp[cluster]'"
        raise InterpError(asked, "Ray is not installed", do) from error
    try:
        ray.init(address=address, logging_level=logging.ERROR, include_dashboard=False)
    except Exception as error:  # Ray raises plain ones when a cluster does not start in time
        do = "start one with `ray start --head`, or give its address"
        raise InterpError(asked, str(error), do) from error
    try:
        register_ray()
        with parallel_config("ray"):
            yield
    finally:
        ray.shutdown()


def each_with_model(
    work: Callable[[LanguageModel, Given], Done],
    model: LanguageModel,
    parts: Sequence[Given],
    *,
    workers: int,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Done]]:
    """The number of each part and `work(model, part)`, as they are done; see `spread`."""
    model.refuse_changed("work of other processes")
    name = _Name.of(model)
    with _known(name, model):
        yield from each(
            partial(_with_model, work, name),
            parts,
            workers=workers,
            progress=progress,
            cancelled=cancelled,
        )


def each(
    work: Callable[[Given], Done],
    parts: Sequence[Given],
    *,
    workers: int,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Done]]:
    """The number of each part and `work(part)`, as they are done; see `spread`."""
    workers = checked(Count, workers, "workers")
    left, died, total = dict(enumerate(parts)), 0, len(parts)
    if progress is not None:
        progress(0, total)
    while left:
        before = len(left)
        try:
            for i, result in _done(work, dict(left), workers):
                del left[i]
                yield i, result
                if progress is not None:
                    progress(total - len(left), total)
                if left and cancelled():
                    found = f"stopped after {total - len(left)} of {total} parts"
                    raise Cancelled("the work", found, "rerun it")
        except _deaths() as error:
            died = died + 1 if len(left) == before else 0
            if died == DEATHS:
                first_line = str(error).partition("\n")[0]
                raise InterpError(
                    f"{total} parts of the work in {workers} processes",
                    f"processes died {died} times, with {len(left)} parts left: {first_line}",
                    "use fewer processes: each needs memory for the model and its runs",
                ) from error


def _done(
    work: Callable[[Given], Done], parts: dict[int, Given], workers: int
) -> Iterator[tuple[int, Done]]:
    """Results as they come; in rounds of a part each if joblib's backend returns only lists."""
    pool_of: Any = Parallel  # its own annotations are too narrow
    backend: Any = parallel.get_active_backend()[0]
    tasks = [delayed(_alone)(work, i, part, os.getpid()) for i, part in parts.items()]
    if workers == 1 or backend.supports_return_generator:
        yield from pool_of(n_jobs=workers, batch_size=1, return_as="generator_unordered")(tasks)
        return
    with pool_of(n_jobs=workers, batch_size=1) as pool:
        for begin in range(0, len(tasks), workers):
            yield from pool(tasks[begin : begin + workers])


def _alone(
    work: Callable[[Given], Done], i: int, part: Given, coordinator: int
) -> tuple[int, Done]:
    """One part, with one thread."""
    if os.getpid() != coordinator:
        _end_with_parent()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return i, work(part)
    finally:
        torch.set_num_threads(before)


@cache
def _end_with_parent() -> None:
    """From now on, end this process when its parent ends, even if the parent was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _deaths() -> tuple[type[BaseException], ...]:
    """What is raised when a process dies, by local processes and by clusters in use."""
    clusters = (("ray.exceptions", "RayActorError"), ("distributed", "KilledWorker"))
    found = [
        getattr(sys.modules[module], name) for module, name in clusters if module in sys.modules
    ]
    return BrokenExecutor, *found


@dataclass(frozen=True, kw_only=True)
class _Name:
    """What another process needs to load a model, and to know that it is the same."""

    name: str
    hash: str
    dtype: str
    device: str

    @classmethod
    def of(cls, model: LanguageModel) -> _Name:
        dtype = str(model.dtype).removeprefix("torch.")
        return cls(name=model.name, hash=model.hash, dtype=dtype, device=model.device.type)


_MODELS: dict[_Name, LanguageModel] = {}
"""The models of this process, by name."""


@contextmanager
def _known(name: _Name, model: LanguageModel) -> Iterator[None]:
    """Inside, this process finds the model by its name without loading it."""
    before = dict(_MODELS)
    _MODELS[name] = model
    try:
        yield
    finally:
        _MODELS.clear()
        _MODELS.update(before)


def _with_model(work: Callable[[LanguageModel, Given], Done], name: _Name, part: Given) -> Done:
    """The work on one part, with the model of a name, which is loaded once."""
    if name not in _MODELS:
        if len(_MODELS) == KEPT_MODELS:
            del _MODELS[next(iter(_MODELS))]
        _MODELS[name] = _load(name)
    return work(_MODELS[name], part)


def _load(name: _Name) -> LanguageModel:
    asked, do = f"{name.name} in other processes", "load the model from a folder, or use workers=0"
    try:
        model = load_model(name.name, dtype=name.dtype, device=name.device)
    except InterpError as error:
        raise InterpError(asked, f"it cannot be loaded by its name: {error}", do) from error
    if model.hash != name.hash:
        raise InterpError(asked, "other weights have this name there", do)
    return model

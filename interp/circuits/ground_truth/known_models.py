"""Models whose circuit is known: compiled programs, and toys with weights set by hand."""

from __future__ import annotations

from dataclasses import dataclass

from interp.core.errors import unknown
from interp.core.prompts import Task
from interp.models.compiled import compiled_programs, load_compiled
from interp.models.language_model import LanguageModel
from interp.models.loading import load_model
from interp.models.toys.circuits import TOYS, build_toy
from interp.tasks.registry import load_task


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model, its task, and the planted components of a toy (None for a compiled program)."""

    name: str
    model: LanguageModel
    task: Task
    planted: frozenset[str] | None


def known_names() -> list[str]:
    """The names that `load_known` accepts: programs, then toys."""
    return [*compiled_programs(), *TOYS]


def load_known(name: str, *, n: int = 24) -> KnownModel:
    """Load a compiled program or toy, with at most n of its pairs.

    Raises:
        InterpError: no such name.
    """
    if name in compiled_programs():
        compiled = load_compiled(name)
        return KnownModel(
            name=name, model=compiled.model, task=compiled.task.first(n), planted=None
        )
    if name not in known_names():
        raise unknown("program or toy", name, known_names())
    model = load_model(name)
    task = load_task(name, model, n=n)
    return KnownModel(name=name, model=model, task=task, planted=build_toy(name).circuit)

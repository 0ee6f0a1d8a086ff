"""The package's tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from interp.core.arguments import Tokenizing
from interp.core.errors import InterpError, unknown
from interp.core.hub import SCHEME
from interp.core.metrics import METRICS
from interp.core.prompts import PromptPair, Task
from interp.core.schema import Count, Seed, check_arguments, checked
from interp.models.toys.circuits import TOYS, build_toy
from interp.tasks.generators import capitals, greater_than, induction
from interp.tasks.hub import hub_task
from interp.tasks.language import LANGUAGE_TASKS
from interp.tasks.names import ioi
from interp.tasks.objects import colored_objects
from interp.tasks.own_prompts import scored_whole
from interp.tasks.saved import is_saved_name, load_saved


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """A task of the package: its generator, a description, and the name of its metric."""

    make: Callable[..., tuple[PromptPair, ...]]
    description: str
    metric: str = "logit_diff"


TASKS: dict[str, TaskEntry] = {
    "ioi": TaskEntry(
        make=ioi,
        description="Indirect object: 'Then, Mary and John ... John gave a ring to' -> Mary",
    ),
    "greater_than": TaskEntry(
        make=greater_than,
        metric="prob_diff",
        description="'The war lasted from the year 1749 to the year 17' -> a later year",
    ),
    "capitals": TaskEntry(make=capitals, description="'The capital of France is' -> Paris"),
    "induction": TaskEntry(make=induction, description="Repeated random words: 'a b c d a b' -> c"),
    "colored_objects": TaskEntry(
        make=colored_objects,
        description="'... a red pen, a blue cup ... What color is the pen? A:' -> red",
    ),
} | {
    name: TaskEntry(
        make=make,
        description=description,
        metric="log_prob_diff" if name == "long_capitals" else "logit_diff",
    )
    for name, (make, description) in LANGUAGE_TASKS.items()
}


def load_task(
    name: str, model: Tokenizing | None = None, *, n: int = 32, seed: int = 0, **options: Any
) -> Task:
    """A task of the package or of a toy model, one that `save_task` saved, or one from a data set.

    Args:
        name: a name in `TASKS`, a `toy-*` name, the name of a saved task, or
            hf://owner/name@commit/file, a .jsonl or .csv file of a Hugging Face data set at one
            commit of 40 digits. Its columns are those of `Task.from_jsonl`.
        model: if given, only words that are single tokens in its vocabulary are used. A saved task
            with an answer of several tokens gets a metric of whole answers: log_prob_diff, or
            log_prob without wrong answers.
        n: number of prompt pairs. A toy has 24 pairs, and no more; a file gives its first n.
        seed: seed of the random choices. The pairs of a toy, a saved task or a file are fixed:
            another seed gives the same pairs, so it gives no held-out prompts. Use `Task.split`
            for these.
        **options: options of the generator, such as `corruption` of `ioi`.

    If a task has fewer than n different prompts, prompts repeat, and the description says how many.
    The description of a toy's task says how many of its pairs it holds.

    Raises:
        InterpError: the task or an option is unknown, the name is that of a file on this machine,
            an option or n is out of range, too few words are single tokens, or a data set's file
            is not there, at an incomplete commit, or out of reach without a network.
    """
    n, seed = checked(Count, n, f"pairs of {name}"), checked(Seed, seed, f"the seed of {name}")
    asked = f"interp.load_task({name!r}{', model' if model else ''}"
    if isinstance(name, str) and name.startswith(SCHEME):
        if options:
            raise unknown(f"option of {name}", next(iter(options)), ())
        return hub_task(name, n)
    if str(name).endswith((".csv", ".jsonl")):
        read = "csv" if str(name).endswith(".csv") else "jsonl"
        do = f"read it by interp.Task.from_{read}({str(name)!r})"
        raise InterpError(f"task {str(name)!r}", "a file, not the name of a task", do)
    saved = isinstance(name, str) and is_saved_name(name)
    if not isinstance(name, str) or not (saved or name in TASKS or name in TOYS):
        raise unknown("task", name, [*TASKS, *TOYS])
    if options and (saved or name in TOYS):
        raise unknown(f"option of {name}", next(iter(options)), ())
    if saved:
        task = load_saved(name).first(n)
        whole = task if model is None else scored_whole(task, model)
        with_model = "" if whole is task else ", model"
        return replace(whole, source=f"interp.load_task({name!r}{with_model}, n={len(task)})")
    if name in TOYS:
        toy = build_toy(name)
        pairs = toy.prompt_pairs[:n]
        held = f"{len(pairs)} of its {len(toy.pairs)} pairs, which no seed changes"
        return Task(
            name=name,
            pairs=pairs,
            description=f"{toy.description} ({held})",
            source=f"{asked}, n={len(pairs)})",
        )
    entry = TASKS[name]
    spelled = "".join(f", {key}={value!r}" for key, value in options.items())
    options = check_arguments(entry.make, options, f"option of {name}")
    task = Task(
        name=name,
        pairs=entry.make(n, seed, model, **options),
        metric=METRICS[entry.metric],
        description=entry.description,
        source=f"{asked}, n={n}, seed={seed}{spelled})",
        seed=seed,
    )
    if not task.repeated:
        return task
    repeats = f"{task.repeated} of {len(task)} prompts repeat an earlier one"
    return replace(task, description=f"{task.description} ({repeats})")

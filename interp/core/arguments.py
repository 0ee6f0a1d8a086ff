"""Lists, prompts, positions and labels as a caller gives them, read by one rule everywhere.

One thing alone stands for a list of it: a string is one prompt, one site, one axis, one answer,
one component or one position, never its characters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from interp.core.components import alone, whole
from interp.core.errors import InterpError
from interp.core.metrics import Metric, metric_named
from interp.core.positions import Mark, Prompt, TokenizedPrompt, resolve
from interp.core.schema import Boolean, Count, Index, Real, Seed, Text, Unicode, Whole, checked

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from interp.core.metrics import Readout, Targets

Positions = str | int | Sequence[int | str]
"""One token of each prompt: a name such as "last" or one marked in a task; a whole number, the same
index in every prompt, negative from its end; or a list with one name or number for each prompt.
Where several tokens may be meant, "all" is every token."""

Columns = str | int | Sequence[str] | Sequence[int]
"""Positions that are patched or measured apart: "all"; one name or several, each a position of its
own; or one position in numbers, one for all prompts or a list with one for each."""


Flags = Any
"""Labels of two classes, (n,): True or 1, and False or 0; a list, an array or a tensor."""


MetricFunction = Callable[["Readout", "Targets"], "Tensor"]
"""A metric of one's own: (readout, targets) to one number per prompt."""


class Tokenizes(Protocol):
    """A model, as far as reading prompts goes."""

    def tokenize(self, prompt: Prompt) -> TokenizedPrompt: ...


class HasPairs(Protocol):
    """A task, as far as its prompts go."""

    @property
    def pairs(self) -> Sequence[Any]: ...


P = ParamSpec("P")
R = TypeVar("R")

_PLAIN: dict[str, Any] = {"int": Index, "float": Real, "bool": Boolean, "str": Unicode}
_NAMED: dict[str, Any] = {
    "seed": Seed,
    "n": Count,
    "rows": Count,
    "draws": Whole,
    "band": Whole,
}
"""What arguments of these names are, wherever they are whole numbers."""

_RECORDS = {
    "Change": "a change such as zero() or make_ablation() gives",
    "ChangedRuns": "stored runs with a change in force",
    "StoredRuns": "runs that keep_runs() gives",
    "LanguageModel": "a model that load_model() gives",
    "Progress": "a function of (done, total)",
    "Callable[[], bool]": "a function that says whether to stop",
    "Scores": "the Scores of a patching function",
    "Task": "a Task",
    "Tensor": "a tensor of torch",
    "None": "None",
}


def reads_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with arguments of the wrong kind refused before anything is computed.

    Looked at are annotations made of plain kinds, `None` and the records of `_RECORDS`, by their
    names; all others are left to the function. Numbers of other libraries become Python's.

    Raises:
        InterpError: an argument is of another kind than its annotation, or out of range.
    """
    taken = signature(function)
    rules = {
        name: parts
        for name, one in taken.parameters.items()
        if name != "budget_gb"  # read by `interp.engine.memory.budget_bytes`
        and (parts := str(one.annotation).split(" | "))
        and {*parts} <= {*_PLAIN, *_RECORDS}
    }

    @wraps(function)
    def read(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = taken.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python's own words on a missing or unknown argument
        for name, value in given.arguments.items():
            if name in rules:
                asked = f"{name} of {function.__name__}()"
                given.arguments[name] = _of_kind(name, rules[name], value, asked)
        return function(*given.args, **given.kwargs)

    return read


def _of_kind(name: str, kinds: Sequence[str], value: Any, asked: str) -> Any:
    """A value of one of these kinds, as Python's own where it is plain."""
    records = [kind for kind in kinds if kind in _RECORDS]
    known = {one.__name__ for one in type(value).__mro__}
    if known & {*records} or (value is None and "None" in records):
        return value
    if callable(value) and {*records} & {"Progress", "Callable[[], bool]"}:
        return value
    for kind in kinds:
        text = isinstance(value, str) == (kind == "str")
        if kind in _PLAIN and (text or len(kinds) - len(records) == 1):
            return checked(_NAMED.get(name, Index) if kind == "int" else _PLAIN[kind], value, asked)
    raise InterpError(asked, f"{value!r:.60}", "give " + " or ".join(_RECORDS[k] for k in records))


def stops_of(stop: Any) -> list[str]:
    """Texts that end a text, none or several.

    Raises:
        InterpError: something else, or an empty text, which every text holds.
    """
    asked = "stop, the texts that end a text"
    return [checked(Text, one, asked) for one in listed(stop, asked=asked)]


def listed(given: Any, *, asked: str = "one thing or several") -> list[Any]:
    """Several things as a list; a string, or anything that cannot be listed, is one thing.

    Raises:
        InterpError: bytes or a dictionary, whose items are not what was meant.
    """
    if isinstance(given, bytes | dict):
        found = f"{type(given).__name__}: {given!r:.60}"
        raise InterpError(asked, found, "give a text, or a list")
    return [given] if alone(given) else list(given)


def as_positions(positions: Any) -> Any:
    """Positions as they are kept: a name, a number, or a list of names and numbers.

    Raises:
        InterpError: they hold something else.
    """
    found = [one if isinstance(one, str) else _number(one) for one in listed(positions)]
    return found[0] if alone(positions) else found


def _number(position: Any) -> int:
    try:
        return whole(position)
    except TypeError as error:
        raise InterpError(
            f"position {position!r}",
            "neither a name nor a whole number",
            "give a name such as 'last', or a token index, negative from the end",
        ) from error


def texts_of(prompts: HasPairs | Prompt | Iterable[Prompt]) -> list[Prompt]:
    """Prompts as a list: a task's clean prompts, several prompts, one text, or one in token ids."""
    if (pairs := getattr(prompts, "pairs", None)) is not None:
        return [pair.clean for pair in pairs]
    found = listed(prompts)
    return [tuple(found)] if found and all(map(_whole, found)) else found


def rows_of(
    model: Tokenizes, prompts: HasPairs | Prompt | Iterable[Prompt]
) -> list[tuple[int, ...]]:
    """Prompts in token ids, checked; see `interp.models.LanguageModel.tokenize`."""
    return [model.tokenize(prompt).tokens for prompt in texts_of(prompts)]


def marks_of(prompts: Any) -> list[dict[str, Mark]] | None:
    """The positions that a task marks in each of its clean prompts; None for plain prompts."""
    pairs = getattr(prompts, "pairs", None)
    return None if pairs is None else [dict(pair.positions) for pair in pairs]


def place_of(
    position: str | int, prompt: TokenizedPrompt, marks: Mapping[str, Mark], label: str
) -> int:
    """The token index, from 0, of one name or number in one prompt.

    Raises:
        InterpError: the prompt has no such token, or it is neither a name nor a whole number.
    """
    if isinstance(position, str):
        return resolve(position, prompt, dict(marks), label)
    n, position = len(prompt.tokens), _number(position)
    if not -n <= position < n:
        raise InterpError(
            f"position {position} of {label}",
            f"it has {n} tokens",
            f"give a position inside the prompt, {-n} to {n - 1}",
        )
    return position % n


def each_of(positions: Positions, n: int, label: str = "prompt") -> list[str | int]:
    """One name or number for each of n prompts: the same for all, or a list of n.

    Raises:
        InterpError: a list of another length.
    """
    found = as_positions(positions)
    if not isinstance(found, list):
        return [found] * n
    if len(found) != n:
        raise InterpError(
            f"positions={found[:5]}",
            f"{len(found)} for {n} {label}s",
            f"give one for each {label}, or one name or number alone for all",
        )
    return found


def places_of(
    positions: Positions,
    prompts: Sequence[TokenizedPrompt],
    marks: Sequence[Mapping[str, Mark]] | None = None,
    *,
    label: str = "prompt",
) -> list[int]:
    """The token index, from 0, of one position in each prompt. See `Positions`.

    Raises:
        InterpError: a list of another length than the prompts, or a token that a prompt lacks.
    """
    each = enumerate(zip(each_of(positions, len(prompts), label), prompts, strict=True))
    return [
        place_of(where, prompt, marks[i] if marks else {}, f"{label} {i}")
        for i, (where, prompt) in each
    ]


def columns_of(
    positions: Columns, task: EncodedTaskLike
) -> tuple[tuple[str, ...], list[list[int]]]:
    """Positions that are patched or measured apart: their names, and each one's token by prompt.

    "all" is not read here; for the rest see `Columns`.

    Raises:
        InterpError: none, one twice, names and numbers mixed, or a token that a prompt lacks.
    """
    positions = as_positions(positions)
    found = listed(positions)
    names = [item for item in found if isinstance(item, str)]
    if not found or len(set(names)) < len(names) or len(names) not in (0, len(found)):
        raise InterpError(
            f"positions={found[:5]}",
            "none, one twice, or names and numbers mixed",
            "give names, each once; or one number for all prompts, or one for each",
        )
    if names:
        return tuple(names), [places_of(n, task.prompts, task.marks, label="pair") for n in names]
    same = found[0] if len(set(found)) == 1 else "given"
    return (str(same),), [places_of(positions, task.prompts, task.marks, label="pair")]  # type: ignore


def flags_of(labels: Flags, n: int) -> np.ndarray:
    """Labels of two classes, (n,) bool: True or 1 for the first class, False or 0 for the other.

    Raises:
        InterpError: another number of labels, or other values.
    """
    import numpy as np

    values = np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels)
    known = values.dtype == bool or (values.dtype.kind in "iuf" and np.isin(values, (0, 1)).all())
    if values.shape != (n,) or not known:
        shown = f"{values.dtype} labels of shape {values.shape}"
        odd = sorted(set(values.ravel().tolist()) - {0, 1}, key=str)[:5]
        raise InterpError(
            shown + (f", among them {odd}" if odd else ""),
            f"{n} examples",
            "give one label for each: True or 1 for valid, False or 0 for invalid",
        )
    return values.astype(bool)


def as_metric(metric: Metric | str | MetricFunction) -> Metric:
    """A metric, the shipped one of that name, or a function wrapped under its own name.

    Raises:
        InterpError: no metric of that name, or nothing that takes a readout and targets.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        return metric_named(metric)
    name = getattr(metric, "__name__", type(metric).__name__)
    try:
        signature(metric).bind(None, None)
    except (TypeError, ValueError) as error:
        raise InterpError(
            f"the metric {name}",
            f"not a function of (readout, targets): {error}",
            "give a name of interp.METRICS, a Metric, or such a function of one number per prompt",
        ) from error
    return Metric(name=name, unit="own", function=metric)


class EncodedTaskLike(Protocol):
    """The part of `interp.core.prompts.EncodedTask` that positions are read from."""

    @property
    def prompts(self) -> list[TokenizedPrompt]: ...
    @property
    def marks(self) -> list[dict[str, Mark]]: ...


def _whole(value: Any) -> bool:
    """Whether it is one whole number."""
    try:
        return isinstance(whole(value), int)
    except TypeError:
        return False

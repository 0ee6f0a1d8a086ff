"""How arguments are read: lists, prompts, positions, labels and metrics.

A single value may be given instead of a list of one. A string is always one prompt, site, axis,
answer, component or position, and never a list of characters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial, wraps
from inspect import Parameter, Signature, signature, unwrap
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
"""One token of each prompt. Either a name, such as "last" or a name the task marks; or a whole
number, which is the same index in every prompt (negative counts from the end); or a list with one
name or number per prompt. Functions that accept several tokens also take "all"."""

Columns = str | int | Sequence[str] | Sequence[int]
"""Positions that are patched or measured separately. Either "all"; or one or more names, each of
which is a separate position; or a single position as a number for all prompts or a list of one
number per prompt."""

Flags = Any
"""Labels of two classes, (n,): True or 1, and False or 0. A list, an array or a tensor."""

MetricFunction = Callable[["Readout", "Targets"], "Tensor"]
"""A user's own metric: a function of (readout, targets) that gives one number per prompt."""


class Tokenizing(Protocol):
    """The part of a model that reading prompts and answers needs."""

    name: str
    d_vocab: int
    tokenizer: Any

    def tokenize(self, prompt: Prompt) -> TokenizedPrompt: ...
    def cut(self, text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...] | None]: ...
    def token_id(self, text: str) -> tuple[int, ...]: ...
    def last_logits(self, prompts: Sequence[Prompt]) -> Tensor: ...
    def tail_logits(self, rows: Sequence[Sequence[int]]) -> Tensor: ...


class HasPairs(Protocol):
    """The part of a task that reading its prompts needs."""

    @property
    def pairs(self) -> Sequence[Any]: ...


P = ParamSpec("P")
R = TypeVar("R")

_PLAIN: dict[str, Any] = {"int": Index, "float": Real, "bool": Boolean, "str": Unicode}
_NAMED: dict[str, Any] = {"seed": Seed, "n": Count, "rows": Count, "draws": Whole, "band": Whole}
"""The type of arguments with these names, in every function in which they are whole numbers."""

_RECORDS = {
    "Change": "a change, e.g. from zero() or make_ablation()",
    "Circuit": "a Circuit, e.g. from Findings.circuit()",
    "ChangedRuns": "stored runs with a change in force",
    "Steering": "a Steering, e.g. from add_direction()",
    "StoredRuns": "runs from keep_runs()",
    "Direction": "a Direction, e.g. from difference_in_means()",
    "LanguageModel": "a model from load_model()",
    "Optimiser": "an Optimiser",
    "Progress": "a function of (done, total)",
    "Callable[[], bool]": "a function that returns whether to stop",
    "Scores": "Scores from a patching function",
    "Task": "a Task",
    "Tensor": "a torch tensor",
    "None": "None",
}


def reads_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that arguments of the wrong type are refused before it runs.

    An argument is checked if its annotation consists only of int, float, bool, str, None and the
    types in `_RECORDS`, which are compared by name. The function itself reads all other arguments.
    Numbers of other libraries are converted to Python numbers. `**run: Unpack[Keywords]` takes the
    keywords that the class `Keywords` lists.

    Raises:
        InterpError: an argument does not have the annotated type, or is out of range.
        TypeError: an argument is missing, or the function does not take it.
    """
    taken = _with_keywords(function)
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
        except TypeError as error:
            takes, reason = ", ".join(taken.parameters), str(error)
            if strange := [name for name in kwargs if name not in taken.parameters]:
                reason = f"got an unexpected keyword argument {strange[0]!r}"
                for near in get_close_matches(strange[0], taken.parameters, n=1):
                    reason += f" (did you mean {near!r}?)"
            raise TypeError(f"{function.__name__}(): {reason}; it takes {takes}") from None
        for name, value in given.arguments.items():
            if name in rules:
                one = partial(_of_kind, name, rules[name], f"{name} of {function.__name__}()")
                several = taken.parameters[name].kind is Parameter.VAR_POSITIONAL
                given.arguments[name] = tuple(map(one, value)) if several else one(value)
        return function(*given.args, **given.kwargs)

    return read


def _with_keywords(function: Callable[..., Any]) -> Signature:
    """The function's signature, with the keywords of `**run: Unpack[Keywords]` one by one."""
    taken = signature(function)
    parameters = []
    for one in taken.parameters.values():
        if one.kind is not Parameter.VAR_KEYWORD:
            parameters.append(one)
            continue
        named = one.annotation.removeprefix("Unpack[").removesuffix("]")
        keywords = unwrap(function).__globals__[named].__annotations__
        for name, kind in keywords.items():
            keyword = Parameter(name, Parameter.KEYWORD_ONLY, default=...)
            parameters.append(keyword.replace(annotation=kind.__forward_arg__))
    return taken.replace(parameters=parameters)


def _of_kind(name: str, kinds: Sequence[str], asked: str, value: Any) -> Any:
    """The value, if it has one of these types; plain values are converted to Python types."""
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
    """The texts at which generation stops, as a list.

    Raises:
        InterpError: a value is not a text, or is empty (every text contains the empty text).
    """
    asked = "stop, the texts at which generation stops"
    return [checked(Text, one, asked) for one in listed(stop, asked=asked)]


def listed(given: Any, *, asked: str = "one value or several") -> list[Any]:
    """The value as a list; a string, or a value that is not iterable, becomes a list of one.

    Raises:
        InterpError: bytes or a dictionary, because iterating over them gives other things than
            the caller meant.
    """
    if isinstance(given, bytes | dict):
        found = f"{type(given).__name__}: {given!r:.60}"
        raise InterpError(asked, found, "give a text or a list")
    return [given] if alone(given) else list(given)


def as_positions(positions: Any) -> Any:
    """Positions with every number converted to a Python int: a name, a number, or a list of these.

    Raises:
        InterpError: an item is neither a name nor a whole number.
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
            "give a name such as 'last', or a token index (negative counts from the end)",
        ) from error


def texts_of(prompts: HasPairs | Prompt | Iterable[Prompt]) -> list[Prompt]:
    """A list of prompts from a task (its clean prompts), several prompts, a text or token ids."""
    if (pairs := getattr(prompts, "pairs", None)) is not None:
        return [pair.clean for pair in pairs]
    found = listed(prompts)
    return [tuple(found)] if found and all(map(_whole, found)) else found


def rows_of(
    model: Tokenizing, prompts: HasPairs | Prompt | Iterable[Prompt]
) -> list[tuple[int, ...]]:
    """The token ids of each prompt, checked by `interp.models.LanguageModel.tokenize`."""
    return [model.tokenize(prompt).tokens for prompt in texts_of(prompts)]


def marks_of(prompts: Any) -> list[dict[str, Mark]] | None:
    """The named positions of each clean prompt of a task, or None for prompts without a task."""
    pairs = getattr(prompts, "pairs", None)
    return None if pairs is None else [dict(pair.positions) for pair in pairs]


def place_of(
    position: str | int, prompt: TokenizedPrompt, marks: Mapping[str, Mark], label: str
) -> int:
    """The token index, from 0, of a position in one prompt.

    Raises:
        InterpError: the prompt has no such token, or `position` is neither a name nor a whole
            number.
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
    """A list with one name or number for each of n prompts.

    Raises:
        InterpError: a list whose length is not n.
    """
    found = as_positions(positions)
    if not isinstance(found, list):
        return [found] * n
    if len(found) != n:
        raise InterpError(
            f"positions={found[:5]}",
            f"{len(found)} for {n} {label}s",
            f"give one for each {label}, or a single name or number for all",
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
        InterpError: there is not one position per prompt, or a prompt has no such token.
    """
    each = enumerate(zip(each_of(positions, len(prompts), label), prompts, strict=True))
    return [
        place_of(where, prompt, marks[i] if marks else {}, f"{label} {i}")
        for i, (where, prompt) in each
    ]


def flags_of(labels: Flags, n: int) -> np.ndarray:
    """(n,) bool labels of two classes: True or 1 for the first, False or 0 for the second.

    Raises:
        InterpError: there are not n labels, or a label has another value.
    """
    import numpy as np

    values = np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels)
    known = values.dtype == bool or (values.dtype.kind in "iuf" and np.isin(values, (0, 1)).all())
    if values.shape != (n,) or not known:
        shown = f"{values.dtype} labels of shape {values.shape}"
        others = {str(one): one for one in values.ravel().tolist() if one not in (0, 1)}
        odd = [others[text] for text in sorted(others)[:5]]
        raise InterpError(
            shown + (f", including {odd}" if odd else ""),
            f"{n} examples",
            "give one label per example: True or 1 for valid, False or 0 for invalid",
        )
    return values.astype(bool)


def as_metric(metric: Metric | str | MetricFunction) -> Metric:
    """A `Metric` from a metric, the name of a shipped metric, or a function.

    Raises:
        InterpError: there is no metric of that name, or the function does not take a readout and
            targets.
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
            "give a name from interp.METRICS, a Metric, or a function with one number per prompt",
        ) from error
    return Metric(name=name, unit="own", function=metric)


def _whole(value: Any) -> bool:
    """Whether the value is a single whole number."""
    try:
        return isinstance(whole(value), int)
    except TypeError:
        return False

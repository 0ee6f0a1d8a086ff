"""Keys of results in the cache: a hash of everything that the result depends on.

A result is looked up by its key. Two measurements that could differ must not have the same key. So
the key covers the model's hash, dtype and device, the tokens of every prompt, the targets, the
metric, all arguments, the versions of packages and the format number of the result.
"""

from __future__ import annotations

import builtins
import dis
import hashlib
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import astuple, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.core.files import canonical_json, content_key, versions
from interp.core.metrics import Metric, is_shipped
from interp.core.prompts import Task
from interp.models.language_model import LanguageModel

VERSIONED = set(
    """
    interp torch numpy scipy transformers einops builtins future abc bisect cmath collections
    contextlib copy dataclasses decimal enum fractions functools heapq itertools math numbers
    operator re statistics string types typing
    """.split()
)
"""Packages whose functions are identified by name, because the version says what they do."""

PURE = set(
    """
    abs all any bool bytes callable complex dict divmod enumerate filter float frozenset int
    isinstance issubclass iter len list map max min next pow print range repr reversed round set
    slice sorted str sum super tuple zip
    """.split()
)
"""Builtin functions whose result depends only on their arguments."""

CHANGING = re.compile(
    r"(^|_)(rand|rng|seed|r?sample|rvs|shuffle|permutation|bernoulli|multinomial|poisson|gumbel"
    r"|normal_?$|uniform_?$|exponential_?$|dropout|load|memmap|genfrom|from_?file|from_pretrained"
    r"|read_text|read_bytes|cache_dir)|^(open|os|sys|time|environ|f_globals|f_back|Generator)$"
    r"|^__\w+__$"
)
"""Names that draw random numbers, read files or the environment, or use Python's internals."""

LOADS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}


class Unknown(Exception):
    """A value that cannot be part of a key, such as an object of a user's own class."""


def result_key(
    what: str, form: int, model: LanguageModel, task: Task | None = None, **arguments: Any
) -> str | None:
    """The key of a measurement on a model; None if its result cannot be kept.

    A user's own metric is identified by its code and by the outside values that it reads. There is
    no key if these cannot be determined (an object of a user's class, a user's module, a function
    that is not written in Python), or if the code reads files, the clock, random numbers, the
    environment, or names at run time (`open`, `globals`, `eval`).

    `what` names the measurement, and `form` is its format number, raised when its computation
    changes. `arguments` are all that can change the result, after checks; they may include tasks.
    """
    told = _Teller(model)
    try:
        return content_key([what, form, versions(), told(model), told(task), told(arguments)])
    except Unknown:
        return None


def values_key(what: str, form: int, values: Any) -> str:
    """The key of a computation on values alone, such as arrays; see `result_key`."""
    return content_key([what, form, versions(), _Teller(None)(values)])


def code_key(function: Callable[..., Any]) -> str | None:
    """The key of a function: a hash of its code and of the outside values it reads.

    None if these cannot be determined.
    """
    try:
        return content_key(_Teller(None)(function))
    except Unknown:
        return None


def tokeniser_key(model: LanguageModel) -> str | None:
    """The key of a model's tokeniser and chat template; None if it has no tokeniser."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    inside = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    told = [type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.chat_template]
    options = {name: getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")}
    return content_key([told, options, inside])


class _Teller:
    """Turns values into JSON, such that different values give different JSON."""

    def __init__(self, model: LanguageModel | None) -> None:
        self.model = model
        self.functions: dict[int, int] = {}

    def __call__(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return ["float", value.hex()]
        if isinstance(value, bytes | complex | Path | torch.dtype | torch.device | range | slice):
            return [type(value).__name__, str(value)]
        if isinstance(value, np.ndarray | np.generic | Tensor):
            return _numbers(value)
        if isinstance(value, Mapping):
            pairs = [[self(name), self(one)] for name, one in value.items()]
            return ["mapping", sorted(pairs, key=canonical_json)]
        if isinstance(value, list | tuple):
            return [self(one) for one in value]
        if isinstance(value, set | frozenset):
            return ["set", sorted(map(self, value), key=canonical_json)]
        if isinstance(value, Task):
            return self._task(value)
        if isinstance(value, Metric) and is_shipped(value):
            return ["metric", value.name]
        if isinstance(value, LanguageModel):
            return ["model", value.hash, str(value.dtype), value.device.type]
        return self._object(value)

    def _task(self, task: Task) -> Any:
        """A task as tokens of the model, with its texts, which results show, and its metric."""
        if self.model is None:
            raise Unknown
        encoded = task.encode(self.model, strings=True)
        targets = [encoded.targets.answers.tolist(), encoded.targets.wrong.tolist()]
        targets += [] if encoded.targets.strings is None else [self(encoded.targets.strings)]
        cut = [astuple(prompt) for prompt in encoded.prompts]
        return ["task", task.hash, cut, encoded.corrupted, targets, self(task.metric)]

    def _object(self, value: Any) -> Any:
        if isinstance(value, types.ModuleType | type | types.BuiltinFunctionType):
            return self._named(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return ["method", self(value.__func__), self(value.__self__)]
        if isinstance(value, partial):
            return ["partial", *map(self, (value.func, value.args, value.keywords, vars(value)))]
        if is_dataclass(value):
            kept = {field.name: getattr(value, field.name) for field in fields(value)}
            return [self._named(type(value)), self(kept)]
        raise Unknown(type(value).__name__)

    def _named(self, value: Any) -> Any:
        """A module, class or function of a known package, identified by its name.

        A function can have the name of another one (`functools.wraps`). So the name must lead to
        this value, and the function must be defined in a known package.
        """
        if isinstance(value, types.ModuleType):
            module, name, found = value.__name__, "", value
        else:
            module, name = str(value.__module__), value.__qualname__
            found = sys.modules.get(module)
            for part in name.split("."):
                found = getattr(found, part, None)
        written = getattr(value, "__globals__", {}).get("__name__", module)
        known = found is value and _versioned(module) and _versioned(written)
        pure = module != "builtins" or isinstance(value, type) or name in PURE
        if not (known and pure) or CHANGING.search(name) or "random" in module.split("."):
            raise Unknown(name or module)
        return ["function of" if isinstance(value, types.FunctionType) else "named", module, name]

    def _function(self, function: types.FunctionType) -> Any:
        try:
            return self._named(function)
        except Unknown:
            pass
        if id(function) in self.functions:
            return ["seen", self.functions[id(function)]]
        self.functions[id(function)] = len(self.functions)
        code, scope = function.__code__, function.__globals__
        names = sorted(_outside(code))
        read = {name: self(scope.get(name, getattr(builtins, name, ...))) for name in names}
        try:
            cells = [cell.cell_contents for cell in function.__closure__ or ()]
        except ValueError as error:  # a variable without a value yet
            raise Unknown(function.__qualname__) from error
        around = [function.__defaults__, function.__kwdefaults__, cells, vars(function)]
        return ["function", self._code(code), self(around), read]

    def _code(self, code: types.CodeType) -> Any:
        constants = [
            self._code(one) if isinstance(one, types.CodeType) else self(one)
            for one in code.co_consts
            if one is not Ellipsis
        ]
        names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
        shape = [code.co_argcount, code.co_kwonlyargcount, code.co_flags]
        return [code.co_code.hex(), code.co_exceptiontable.hex(), constants, names, shape]


def _outside(code: types.CodeType, free: tuple[str, ...] | None = None) -> set[str]:
    """The global and builtin names that a function, and the functions defined in it, read.

    `free` are the variables outside the outermost function.

    Raises:
        Unknown: it imports a package that is not versioned, uses a name in `CHANGING`, or sets a
            variable outside itself.
    """
    found, free = set(), code.co_freevars if free is None else free
    for step in dis.get_instructions(code):
        imports = step.opname == "IMPORT_NAME"
        sets = step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") or (
            step.opname == "STORE_DEREF" and step.argval in free
        )
        if sets or (imports and (step.argval == "builtins" or not _versioned(step.argval))):
            raise Unknown(step.argval)
        if step.opname in LOADS:
            found.add(step.argval)
    for name in code.co_names:
        if CHANGING.search(name):
            raise Unknown(name)
    inner = (one for one in code.co_consts if isinstance(one, types.CodeType))
    return found.union(*(_outside(one, free) for one in inner))


def _versioned(module: str) -> bool:
    return module.partition(".")[0].lstrip("_") in VERSIONED


def _numbers(value: Any) -> Any:
    """Type, shape and sha256 of an array or a tensor."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        data = value.reshape(-1).view(torch.uint8).numpy()
    else:
        if value.dtype.hasobject:
            raise Unknown(str(value.dtype))
        value = np.ascontiguousarray(value)
        data = value.reshape(-1).view(np.uint8)
    return ["array", str(value.dtype), list(value.shape), hashlib.sha256(data.data).hexdigest()]

"""The key of every measured result: all it hangs on, and nothing else.

A result is looked up under its key. Two measurements that could differ must not share one, so the
key holds the model's hash, type and device, every prompt as the tokeniser cut it, the targets, the
metric, all arguments, the versions of the packages and the number of the result's format.
"""

from __future__ import annotations

import dis
import hashlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.files import canonical_json, content_key, versions
from interp.metrics import Metric, is_shipped
from interp.models.language_model import LanguageModel
from interp.prompts import Task

VERSIONED = {"interp", "torch", "numpy", "scipy", "transformers", "einops"} | set(
    sys.stdlib_module_names
)
"""Packages whose functions are known by their names: a version says what they do."""


class Unknown(Exception):
    """A value that nothing plain stands for, such as an object of a class of one's own."""


def result_key(
    what: str, form: int, model: LanguageModel, task: Task | None = None, **arguments: Any
) -> str | None:
    """The key of what a function measures on a model; None where it is not to be kept.

    A metric of one's own is told by its code and by the values that it reads from around it.
    Where these cannot be had (an object of one's own class, a module of one's own, a function
    that is not Python) there is no key.

    Args:
        what: the name of the measurement.
        form: the number of its format, raised when what it computes changes.
        model: the model.
        task: what it is measured on.
        arguments: every argument that can change the result, checked; tasks among them too.
    """
    told = _Teller(model)
    try:
        return content_key([what, form, versions(), told(model), told(task), told(arguments)])
    except Unknown:
        return None


def code_key(function: Callable[..., Any]) -> str | None:
    """The key of what a function does: its code and the values it reads from around it.

    None where these cannot be had.
    """
    try:
        return content_key(_Teller(None)(function))
    except Unknown:
        return None


def tokeniser_key(model: LanguageModel) -> str | None:
    """The key of a model's tokeniser with its chat template; None where there is none."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    inside = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    told = [type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.chat_template]
    options = {name: getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")}
    return content_key([told, options, inside])


class _Teller:
    """Values as plain JSON that two different values do not share."""

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
        """A task in the model's tokens, with its words, which results show, and its metric."""
        if self.model is None:
            raise Unknown
        encoded = task.encode(self.model)
        targets = [encoded.targets.answers.tolist(), encoded.targets.wrong.tolist()]
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
            return ["partial", self(value.func), self(value.args), self(value.keywords)]
        if is_dataclass(value):
            kept = {field.name: getattr(value, field.name) for field in fields(value)}
            return [self._named(type(value)), self(kept)]
        raise Unknown(type(value).__name__)

    def _named(self, value: Any) -> Any:
        """What a version says all about: a module, class or function of a known package."""
        module = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
        name = getattr(value, "__qualname__", "")
        if str(module).partition(".")[0] not in VERSIONED or "<locals>" in name:
            raise Unknown(name or module)
        return ["named", module, name]

    def _function(self, function: types.FunctionType) -> Any:
        try:
            return self._named(function)
        except Unknown:
            pass
        if id(function) in self.functions:
            return ["seen", self.functions[id(function)]]
        self.functions[id(function)] = len(self.functions)
        code, scope = function.__code__, function.__globals__
        every = list(_codes(code))
        for one in every:
            for step in dis.get_instructions(one):
                if step.opname == "IMPORT_NAME" and step.argval.partition(".")[0] not in VERSIONED:
                    raise Unknown(step.argval)
        names = sorted({name for one in every for name in one.co_names if name in scope})
        try:
            cells = [cell.cell_contents for cell in function.__closure__ or ()]
        except ValueError as error:  # not filled yet
            raise Unknown(function.__qualname__) from error
        around = [function.__defaults__, function.__kwdefaults__, cells]
        return ["function", self._code(code), self(around), {n: self(scope[n]) for n in names}]

    def _code(self, code: types.CodeType) -> Any:
        constants = [
            self._code(one) if isinstance(one, types.CodeType) else self(one)
            for one in code.co_consts
            if one is not Ellipsis
        ]
        names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
        shape = [code.co_argcount, code.co_kwonlyargcount, code.co_flags]
        return [code.co_code.hex(), code.co_exceptiontable.hex(), constants, names, shape]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of all functions written inside it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield from _codes(one)


def _numbers(value: Any) -> Any:
    """Type, shape and sha256 of an array or a tensor."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        kind, data = str(value.dtype), value.reshape(-1).view(torch.uint8).numpy()
    else:
        value = np.ascontiguousarray(value)
        kind, data = str(value.dtype), value.reshape(-1).view(np.uint8)
    return ["array", kind, list(value.shape), hashlib.sha256(data.data).hexdigest()]

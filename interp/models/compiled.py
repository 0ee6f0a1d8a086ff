"""Programs that Tracr compiled to weights, as ordinary models whose circuits are known.

A program is a file `<name>.safetensors` with a `<name>.json` in the same folder, both written by
`training/tracr.py`. The package contains five. Tracr's networks have learned positions, ReLU MLPs
and no layer norm; here they become a GPT-2 whose layer norms have no effect. Source: Lindner et al.
2023, arXiv 2301.05062.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.metrics import METRICS
from interp.core.prompts import PromptPair, Task
from interp.models.language_model import LanguageModel
from interp.models.loading import wrap
from interp.models.toys.build import word_tokenizer

PROGRAMS = Path(__file__).parent / "programs"
"""The folder of the package's programs."""

EPS = 1e12
"""The eps of the layer norms. It is so much larger than a variance that the scale is constant."""

CHECKED = 8
"""Least number of positions, which the checks need; those the program lacks are zero."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled program as a language model, with the outputs of the compiled network.

    Attributes:
        model: the model, whose name is "tracr-" and the name of the program.
        task: pairs of prompts of equal length whose answers at the last position differ. Its
            description says what the program computes.
        cases: the token ids of every sequence that the Tracr network was run on.
        expected: for each case, (tokens, outputs) the Tracr network's outputs at each position.
        outputs: the tokens whose logits are these outputs.
        residual: the meaning of each dimension of the residual stream; further ones are padding.
    """

    model: LanguageModel
    task: Task
    cases: tuple[tuple[int, ...], ...]
    expected: tuple[Tensor, ...]
    outputs: tuple[int, ...]
    residual: tuple[str, ...]


def compiled_programs() -> list[str]:
    """Names of the package's programs."""
    return sorted(path.stem for path in PROGRAMS.glob("*.json"))


def load_compiled(path: str | Path, *, dtype: str = "float32", check: bool = True) -> Compiled:
    """A compiled program as an ordinary `LanguageModel`, with its task and its cases.

    The model equals the Tracr network up to rounding. One dimension is added to Tracr's residual
    stream, which holds minus the sum of the others, so that the mean that layer norm subtracts is
    zero. The norms have eps 1e12 and weight 1e6, so that their scale is 1. Heads are padded with
    zeros to GPT-2's head width, and queries are scaled to undo the change of 1/sqrt(d_head). Each
    output word a has its own token "=a", whose logit is Tracr's output. A program whose output is
    one number has the tokens "=value" and "=zero". "<unk>" has the logit 0.5, so that it is the
    most likely token if the program outputs nothing.

    Full attention cannot be represented, because the models of this package are causal. A program
    that looks ahead (Tracr's `sort` or `reverse` at every position) must be compiled with a causal
    mask, which changes its meaning at positions that looked ahead.

    Args:
        path: a name from `compiled_programs`, such as "reverse", or the path of a program's files,
            with or without a suffix.
        dtype: "float32" or "float64".
        check: test the model's sites with the replacement identity, as `load_model` does.

    Raises:
        InterpError: there is no such program, its files are damaged, or it was compiled without a
            causal mask.
    """
    own = str(path) in compiled_programs()
    stem = PROGRAMS / str(path) if own else Path(path)
    stem = Path(str(stem).removesuffix(".json").removesuffix(".safetensors"))
    facts, arrays = _read(stem)
    if not facts["causal"]:
        raise InterpError(
            f"the compiled program {facts['name']}",
            "it attends to later tokens, but the models here are causal",
            "compile it with causal=True",
        )
    if dtype not in ("float32", "float64"):
        raise InterpError(
            f"dtype {dtype!r}", "not precise enough for an eps of 1e12", "use float32"
        )
    network = _gpt2(facts, arrays).to(getattr(torch, dtype))
    name = f"tracr-{facts['name']}"
    model = wrap(
        network,
        word_tokenizer(facts["words"]),
        name=name,
        card=f"# {name}\n\n{facts['description']}\n\n{facts['made_by']}\n",
        check=check,
    )
    pairs = tuple(
        PromptPair(
            clean=one["clean"],
            corrupted=one["corrupted"],
            answers=(one["answer"],),
            wrong=(one["wrong"],),
        )
        for one in facts["pairs"]
    )
    cases = tuple(tuple(t for t in row if t >= 0) for row in arrays["tokens"].tolist())
    first = _first_output(facts)
    return Compiled(
        model=model,
        task=Task(
            name=name,
            pairs=pairs,
            metric=METRICS["logit_diff"],
            description=facts["description"],
            source=f"interp.models.load_compiled({str(path)!r}).task",
        ),
        cases=cases,
        expected=tuple(
            values[: len(case)] for values, case in zip(arrays["expected"], cases, strict=True)
        ),
        outputs=tuple(range(first, first + facts["outputs"])),
        residual=tuple(facts["residual"]),
    )


def _read(stem: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of a program's two files."""
    try:
        facts = json.loads(stem.with_name(f"{stem.name}.json").read_text(encoding="utf-8"))
        return facts, load_file(stem.with_name(f"{stem.name}.safetensors"))
    except (OSError, ValueError, SafetensorError) as error:
        raise InterpError(
            f"the compiled program {stem}",
            f"missing or damaged: {error}",
            f"use one of {', '.join(compiled_programs())}, or make it with training/tracr.py",
        ) from error


def _gpt2(facts: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> Any:
    """The network as a `GPT2LMHeadModel`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    width, heads, key = len(facts["residual"]), facts["heads"], facts["key_size"]
    d_head = max(key, math.ceil((width + 1) / heads))
    config = GPT2Config(
        vocab_size=len(facts["words"]),
        n_embd=heads * d_head,
        n_layer=facts["layers"],
        n_head=heads,
        n_positions=max(CHECKED, len(arrays["pos_embed"])),
        n_inner=arrays["blocks.0.mlp_in.w"].shape[1],
        activation_function="relu",
        layer_norm_epsilon=EPS,
        tie_word_embeddings=False,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        network = GPT2LMHeadModel(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.zero_()
    body: Any = network.transformer
    embedded = arrays["token_embed"]
    # Token 1 is <unk>, which Tracr does not have: its embedding stays zero.
    inputs = [0, *range(2, 1 + len(embedded))]
    body.wte.weight[inputs] = _balanced(embedded, config.n_embd)
    positions = _balanced(arrays["pos_embed"], config.n_embd)
    body.wpe.weight[: len(positions)] = positions
    first = _first_output(facts)
    read = arrays["unembed"].T
    network.lm_head.weight[first : first + len(read), :width] = read
    if "one" in facts["residual"]:
        network.lm_head.weight[1, facts["residual"].index("one")] = 0.5
    for number, layer in enumerate(body.h):
        _set_layer(layer, number, arrays, heads, d_head)
    for norm in (body.ln_f, *(n for layer in body.h for n in (layer.ln_1, layer.ln_2))):
        norm.weight.fill_(math.sqrt(EPS))
    return network


def _first_output(facts: Mapping[str, Any]) -> int:
    """The first of the tokens whose logits are outputs; they are the last of the vocabulary."""
    return len(facts["words"]) - max(facts["outputs"], 2)


def _set_layer(
    layer: Any, number: int, arrays: Mapping[str, Tensor], heads: int, d_head: int
) -> None:
    """Set the weights of one block, with each head padded to `d_head`."""

    def part(name: str) -> tuple[Tensor, Tensor]:
        return arrays[f"blocks.{number}.{name}.w"], arrays[f"blocks.{number}.{name}.b"]

    attention, mlp, wide = layer.attn, layer.mlp, heads * d_head
    for place, name in enumerate(("query", "key", "value")):
        weight, bias = part(name)
        key = weight.shape[1] // heads
        # GPT-2 divides scores by the root of its own, padded head width.
        scale = math.sqrt(d_head / key) if name == "query" else 1.0
        columns = slice(place * wide, (place + 1) * wide)
        into = attention.c_attn.weight[: len(weight), columns].unflatten(1, (heads, d_head))
        into[..., :key] = scale * weight.unflatten(1, (heads, key))
        attention.c_attn.bias[columns].view(heads, d_head)[:, :key] = scale * bias.view(heads, key)
    weight, bias = part("linear")
    key = len(weight) // heads
    into = attention.c_proj.weight.unflatten(0, (heads, d_head))
    into[:, :key] = _balanced(weight, wide).unflatten(0, (heads, key))
    attention.c_proj.bias.copy_(_balanced(bias[None], wide)[0])
    weight, bias = part("mlp_in")
    mlp.c_fc.weight[: len(weight)] = weight
    mlp.c_fc.bias.copy_(bias)
    weight, bias = part("mlp_out")
    mlp.c_proj.weight.copy_(_balanced(weight, wide))
    mlp.c_proj.bias.copy_(_balanced(bias[None], wide)[0])


def _balanced(writes: Tensor, width: int) -> Tensor:
    """Outputs padded to `width`, with minus their sum in the first padding dimension."""
    padded = writes.new_zeros(len(writes), width)
    own = writes.shape[1]
    padded[:, :own] = writes
    padded[:, own] = -writes.sum(1)
    return padded

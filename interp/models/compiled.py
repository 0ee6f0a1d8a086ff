"""Programs compiled to weights by Tracr, as ordinary models: circuits whose truth is known.

A program is `<name>.safetensors` with `<name>.json` beside it, as `training/tracr.py`
writes them; five come with the package. Tracr's networks have learned positions, ReLU MLPs and no
layer norm; here they become a GPT-2 whose layer norms do nothing. Lindner et al. 2023
(arXiv 2301.05062).
"""

from __future__ import annotations

import json
import math
import tempfile
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
from interp.models.toys.toy import BOS, UNKNOWN

PROGRAMS = Path(__file__).parent / "programs"
"""Where the package's own are."""

EPS = 1e12
"""Added to a variance of order one before its root is taken: the norm's scale is then constant."""

CHECKED = 8
"""Positions at least: what a model is checked on. Those past the program's longest are blank."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled program as a language model, and what the compiled network computes.

    cases: every sequence it was run on, as token ids. expected[i]: (tokens, outputs) of case i,
    what the Tracr network gave at each position. outputs: the tokens whose logits these are.
    task: pairs of equal length whose answers differ at the last position. residual: what each
    dimension of the residual stream means; those after the last are padding.
    """

    name: str
    model: LanguageModel
    task: Task
    cases: tuple[tuple[int, ...], ...]
    expected: tuple[Tensor, ...]
    outputs: tuple[int, ...]
    residual: tuple[str, ...]
    description: str


def compiled_programs() -> list[str]:
    """Names of the programs that come with the package."""
    return sorted(path.stem for path in PROGRAMS.glob("*.json"))


def load_compiled(path: str | Path, *, dtype: str = "float32", check: bool = True) -> Compiled:
    """A compiled program as an ordinary `LanguageModel`, with its task and its cases.

    Representation, exact up to rounding: the residual stream keeps Tracr's dimensions and gains
    one that holds minus the sum of the others, so that layer norm has no mean to subtract; the
    norms' eps is 1e12 and their weight 1e6, so that they divide by nothing. Heads are as wide as
    GPT-2 makes them, the rest zero, and queries carry the ratio of the two roots. Output words are
    tokens of their own, "=a" for the output a, whose logits are Tracr's outputs. A program with
    one number as output has the tokens "=value" and "=zero". "<unk>" has the logit 0.5, so that it
    is what follows where the program outputs nothing.

    Not representable: full attention. The models of this package are causal, and a program that
    looks ahead (Tracr's `sort` or `reverse` at every position) must be compiled with a causal mask,
    which changes what it means wherever it looked ahead.

    Args:
        path: a name of `compiled_programs`, such as "reverse"; or files, with or without a suffix.
        dtype: "float32" or "float64".
        check: put the model's sites to the replacement identity, as `load_model` does.

    Raises:
        InterpError: no such program or a damaged one; a program compiled without a causal mask.
    """
    own = str(path) in compiled_programs()
    stem = PROGRAMS / str(path) if own else Path(path)
    stem = Path(str(stem).removesuffix(".json").removesuffix(".safetensors"))
    facts, arrays = _read(stem)
    if not facts["causal"]:
        raise InterpError(
            f"the compiled program {facts['name']}",
            "it attends to later tokens, which a causal language model cannot",
            "compile it with causal=True",
        )
    if dtype not in ("float32", "float64"):
        raise InterpError(f"dtype {dtype!r}", "too coarse for an eps of 1e12", "use float32")
    network = _gpt2(facts, arrays).to(getattr(torch, dtype))
    name = f"tracr-{facts['name']}"
    model = wrap(
        network,
        _tokenizer(facts["words"]),
        name=name,
        card=f"# {name}\n\n{facts['description']}\n\n{facts['made_by']}\n",
        check=check,
    )
    pairs = tuple(
        PromptPair(
            clean=pair["clean"],
            corrupted=pair["corrupted"],
            answers=(pair["answer"],),
            wrong=(pair["wrong"],),
        )
        for pair in facts["pairs"]
    )
    cases = [tuple(t for t in row if t >= 0) for row in arrays["tokens"].tolist()]
    first = len(facts["words"]) - (facts["outputs"] if facts["outputs"] > 1 else 2)
    return Compiled(
        name=name,
        model=model,
        task=Task(
            name=name,
            pairs=pairs,
            metric=METRICS["logit_diff"],
            description=facts["description"],
            source=f"interp.models.load_compiled({str(path)!r}).task",
        ),
        cases=tuple(cases),
        expected=tuple(
            values[: len(case)] for values, case in zip(arrays["expected"], cases, strict=True)
        ),
        outputs=tuple(range(first, first + facts["outputs"])),
        residual=tuple(facts["residual"]),
        description=facts["description"],
    )


def _read(stem: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Both files of a program."""
    try:
        facts = json.loads(stem.with_name(f"{stem.name}.json").read_text(encoding="utf-8"))
        return facts, load_file(stem.with_name(f"{stem.name}.safetensors"))
    except (OSError, ValueError, SafetensorError) as error:
        raise InterpError(
            f"the compiled program {stem}",
            f"missing or damaged: {error}",
            f"name one of {', '.join(compiled_programs())}, or make it with training/tracr.py",
        ) from error


def _tokenizer(words: list[str]) -> Any:
    """A word-level tokeniser: words separated by spaces, none added."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    numbers = {word: token for token, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    with tempfile.TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=BOS,
            unk_token=UNKNOWN,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


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
    # The token after <bos> is <unk>, which Tracr does not have: it stays zero.
    inputs = [0, *range(2, 1 + len(embedded))]
    body.wte.weight[inputs] = _balanced(embedded, config.n_embd)
    positions = _balanced(arrays["pos_embed"], config.n_embd)
    body.wpe.weight[: len(positions)] = positions
    first = len(facts["words"]) - (facts["outputs"] if facts["outputs"] > 1 else 2)
    read = arrays["unembed"].T
    network.lm_head.weight[first : first + len(read), :width] = read
    if "one" in facts["residual"]:
        network.lm_head.weight[1, facts["residual"].index("one")] = 0.5
    for number, layer in enumerate(body.h):
        _set_layer(layer, number, arrays, heads, d_head)
    for norm in (n for layer in body.h for n in (layer.ln_1, layer.ln_2)):
        norm.weight.fill_(math.sqrt(EPS))
    body.ln_f.weight.fill_(math.sqrt(EPS))
    return network


def _set_layer(
    layer: Any, number: int, arrays: Mapping[str, Tensor], heads: int, d_head: int
) -> None:
    """One block's weights, each head padded to `d_head`."""

    def part(name: str) -> tuple[Tensor, Tensor]:
        return tuple(arrays[f"blocks.{number}.{name}.{letter}"] for letter in "wb")  # type: ignore

    attention, mlp, wide = layer.attn, layer.mlp, heads * d_head
    for place, name in enumerate(("query", "key", "value")):
        weight, bias = part(name)
        key = weight.shape[1] // heads
        # GPT-2 divides scores by the root of its own head width.
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
    """Rows written to the residual stream, padded, with minus their sum in the next dimension."""
    padded = writes.new_zeros(len(writes), width)
    own = writes.shape[1]
    padded[:, :own] = writes
    padded[:, own] = -writes.sum(1)
    return padded

"""Turn weights on named directions of the residual stream into the weights of a Llama.

The direction "const" holds a value so large that it alone determines the size of the residual
stream. RMSNorm then divides by a constant, and its weight undoes this: every component reads the
other directions exactly as they were written, and "const" as 1.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import LlamaForCausalLM

    from interp.core.prompts import PromptPair

BOS, UNKNOWN = "<bos>", "<unk>"

Weights = Mapping[str, float]
"""Weights on named directions that a component reads or writes."""

Slots = Mapping[int, Weights]
"""The weights of each used dimension of a head, by its number."""

D_MODEL, D_HEAD, HEADS, GROUPS, NEURONS = 64, 16, 4, 2, 8
UNREAD = 16
CONST = 256.0
ROPE_THETA = 1e8

STILL = (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
"""Head dimensions that hold content: rotary embedding turns them by at most 0.001 rad a token."""


def looking_back(distance: float, strength: float, *pairs: int) -> dict[int, Weights]:
    """Query slots that attend most to keys `distance` tokens before.

    For each rotary pair p, a key with 1 in the pair's first dimension, delta tokens before, has the
    score strength * cos((delta - distance) / 10**p).
    """
    slots: dict[int, Weights] = {}
    for pair in pairs:
        angle = distance * ROPE_THETA ** (-2 * pair / D_HEAD)
        slots[pair] = {"const": strength * math.cos(angle)}
        slots[pair + D_HEAD // 2] = {"const": -strength * math.sin(angle)}
    return slots


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A model with a hand-built circuit, and prompts that use it.

    `vocabulary[i]` is the text of token i. Texts are words separated by single spaces, and every
    prompt begins with the word "<bos>". `circuit` holds the labels of the circuit's components:
    L0H1 is a head's z, L1N3 a GLU neuron's post. `roles` says what each component does. `pairs` are
    (clean, corrupted, answer, wrong): the model continues clean with answer and corrupted with
    wrong.
    """

    name: str
    model: LlamaForCausalLM
    vocabulary: tuple[str, ...]
    circuit: frozenset[str]
    roles: dict[str, str]
    pairs: tuple[tuple[str, str, str, str], ...]
    description: str

    @property
    def prompt_pairs(self) -> tuple[PromptPair, ...]:
        """`pairs` as those of a task."""
        from interp.core.prompts import PromptPair  # loads torch

        return tuple(
            PromptPair(clean=clean, corrupted=corrupted, answers=(answer,), wrong=(wrong,))
            for clean, corrupted, answer, wrong in self.pairs
        )


@dataclass(kw_only=True)
class Blueprint:
    """A circuit to build by hand; `model` makes its weights.

    `embed` and `unembed` give the weights of each word; words in `fillers` have none. Heads and
    neurons that are not part of the circuit get random weights, and write only to directions that
    no component of the circuit and no logit reads.
    """

    layers: int
    directions: tuple[str, ...]
    embed: Mapping[str, Weights]
    unembed: Mapping[str, Weights]
    fillers: tuple[str, ...] = ()
    seed: int = 0
    roles: dict[str, str] = field(default_factory=dict)
    _groups: dict[tuple[int, int], tuple[Slots, Slots]] = field(default_factory=dict)
    _heads: dict[tuple[int, int], tuple[Slots, Slots]] = field(default_factory=dict)
    _neurons: dict[tuple[int, int], tuple[Weights, Weights, Weights]] = field(default_factory=dict)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All words, in the order of their token ids."""
        return tuple(dict.fromkeys((BOS, UNKNOWN, *self.embed, *self.unembed, *self.fillers)))

    def group(self, layer: int, index: int, *, key: Slots, value: Slots) -> None:
        """Set the keys and values that query heads 2 * index and 2 * index + 1 share."""
        self._groups[layer, index] = key, value

    def head(self, layer: int, index: int, role: str, *, query: Slots, output: Slots) -> None:
        """Set a query head of the circuit, and describe its role.

        The product of query and key is the attention score.
        """
        root = math.sqrt(D_HEAD)  # by which attention divides scores
        scaled = {i: {name: w * root for name, w in form.items()} for i, form in query.items()}
        self._heads[layer, index] = scaled, output
        self.roles[f"L{layer}H{index}"] = role

    def neuron(
        self, layer: int, index: int, role: str, *, gate: Weights, up: Weights, output: Weights
    ) -> None:
        """Set a GLU neuron of the circuit, silu(gate) * up, and describe its role."""
        self._neurons[layer, index] = gate, up, output
        self.roles[f"L{layer}N{index}"] = role

    def model(self) -> LlamaForCausalLM:
        """The model, with frozen weights. The global random state is not changed."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=len(self.vocabulary),
            hidden_size=D_MODEL,
            intermediate_size=NEURONS,
            num_hidden_layers=self.layers,
            num_attention_heads=HEADS,
            num_key_value_heads=GROUPS,
            head_dim=D_HEAD,
            max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            tie_word_embeddings=False,
            bos_token_id=self.vocabulary.index(BOS),
            eos_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            model = LlamaForCausalLM(config)
        model = model.eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(self.seed)
        self._set_words(model, generator)
        layers: Any = model.model.layers
        for layer in layers:
            _set_random(layer, generator)
        for (at, index), (key, value) in self._groups.items():
            attention, dims = layers[at].self_attn, slice(index * D_HEAD, (index + 1) * D_HEAD)
            self._plant(attention.k_proj.weight[dims], key)
            self._plant(attention.v_proj.weight[dims], value)
        for (at, index), (query, output) in self._heads.items():
            attention, dims = layers[at].self_attn, slice(index * D_HEAD, (index + 1) * D_HEAD)
            self._plant(attention.q_proj.weight[dims], query)
            self._plant(attention.o_proj.weight[:, dims].T, output)
        for (at, index), (gate, up, output) in self._neurons.items():
            mlp, one = layers[at].mlp, slice(index, index + 1)
            self._plant(mlp.gate_proj.weight[one], {0: gate})
            self._plant(mlp.up_proj.weight[one], {0: up})
            self._plant(mlp.down_proj.weight[:, one].T, {0: output})
        _set_norm(model.model.norm.weight)
        return model

    def _set_words(self, model: LlamaForCausalLM, generator: Generator) -> None:
        embedding, unembedding = model.model.embed_tokens.weight, model.lm_head.weight
        for token, word in enumerate(self.vocabulary):
            self._plant(embedding[token : token + 1], {0: self.embed.get(word, {})})
            self._plant(unembedding[token : token + 1], {0: self.unembed.get(word, {})})
        embedding[:, 0] = CONST
        embedding[:, -UNREAD:].normal_(std=0.25, generator=generator)

    def _plant(self, block: Tensor, slots: Slots) -> None:
        """Set a (slots, d_model) view of a weight to the given weights, and to zero elsewhere."""
        axes = {name: axis for axis, name in enumerate(("const", *self.directions))}
        block.zero_()
        for slot, form in slots.items():
            for name, weight in form.items():
                block[slot, axes[name]] = weight


def _set_random(layer: Any, generator: Generator) -> None:
    """Random weights that write only to directions that no component of the circuit reads."""
    attention, mlp = layer.self_attn, layer.mlp
    reading = (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj)
    for linear in reading:
        linear.weight.normal_(std=0.2, generator=generator)
    for linear in (attention.o_proj, mlp.down_proj):
        linear.weight.zero_()[-UNREAD:].normal_(std=0.2, generator=generator)
    _set_norm(layer.input_layernorm.weight)
    _set_norm(layer.post_attention_layernorm.weight)


def _set_norm(weight: Tensor) -> None:
    root = math.sqrt(D_MODEL)
    weight.fill_(CONST / root)
    weight[0] = 1 / root


def word_tokenizer(words: Sequence[str]) -> Any:
    """The tokeniser that `save_tokenizer` saves."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(words, folder)
        return AutoTokenizer.from_pretrained(folder)


def save_tokenizer(words: Sequence[str], directory: str | Path) -> None:
    """Save a tokeniser whose tokens are words, for `AutoTokenizer.from_pretrained`.

    `words[i]` is the text of token i. Other words become "<unk>". No special tokens are added.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    numbers = {word: token for token, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(directory)

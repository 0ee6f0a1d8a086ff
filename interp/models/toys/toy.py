"""The type `Toy`, and tokenisers of words separated by spaces."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

BOS, UNKNOWN = "<bos>", "<unk>"


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

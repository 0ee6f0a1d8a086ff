"""The type `Toy`, and how its tokeniser is saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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


def save_tokenizer(toy: Toy, directory: str | Path) -> None:
    """Save the toy's word-level tokeniser in a folder for `AutoTokenizer.from_pretrained`.

    Words outside the vocabulary become "<unk>". No special tokens are added.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {word: token for token, word in enumerate(toy.vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(directory)

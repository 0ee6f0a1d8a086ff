"""What a toy is, and its tokeniser on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

BOS, UNKNOWN = "<bos>", "<unk>"


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A model with a planted circuit, and the prompts that exercise it.

    `vocabulary[i]` is the text of token i; a text is words separated by single spaces, and every
    prompt begins with the word "<bos>". `circuit` holds the planted components: L0H1 is a head's
    z, L1N3 a GLU neuron's post; `roles` says what each does. `pairs` are (clean, corrupted,
    answer, wrong): the model continues clean with answer and corrupted with wrong.
    """

    name: str
    model: LlamaForCausalLM
    vocabulary: tuple[str, ...]
    circuit: frozenset[str]
    roles: dict[str, str]
    pairs: tuple[tuple[str, str, str, str], ...]
    description: str


def save_tokenizer(toy: Toy, directory: str | Path) -> None:
    """Write the toy's word-level tokeniser where `AutoTokenizer.from_pretrained` finds it.

    Words outside the vocabulary become "<unk>"; no token is added on its own.
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

"""Word lists of the tasks: common words that are single tokens in most vocabularies."""

from __future__ import annotations

from collections.abc import Sequence

from interp.core.arguments import Tokenizing, listed
from interp.core.continuations import BEFORE_WORDS, follows
from interp.core.errors import InterpError

NAMES = (
    "Mary John Tom James Dan Martin Amy Scott Mark Laura Paul Kevin Anna Robert Steven Simon "
    "Alex Andrew Richard Sarah Jack Rachel Michael David Peter Alice Kate Adam Emma Lucy"
).split()
PLACES = "store garden restaurant school hospital office house station".split()
THINGS = "ring kiss bone basketball computer necklace drink snack".split()
EVENTS = (
    "war campaign conflict expedition investigation journey mission negotiation operation program "
    "project study survey trial voyage dispute"
).split()
OBJECTS = "pencil notebook cup plate ball keychain bracelet puzzle mug fork paper pen".split()
COLOURS = "red blue green yellow purple orange black white brown pink".split()
NOUNS = (
    "apple river stone window doctor music garden paper bridge winter school market engine "
    "letter forest summer mirror bottle silver circle planet island farmer hunter copper "
    "dragon castle carpet rocket temple cotton pepper butter ribbon thunder shadow"
).split()

_CAPITALS = (
    "France Paris Germany Berlin Italy Rome Spain Madrid Portugal Lisbon England London Ireland "
    "Dublin Scotland Edinburgh Austria Vienna Belgium Brussels Netherlands Amsterdam Denmark "
    "Copenhagen Norway Oslo Sweden Stockholm Finland Helsinki Poland Warsaw Hungary Budapest "
    "Romania Bucharest Bulgaria Sofia Greece Athens Turkey Ankara Russia Moscow Ukraine Kiev "
    "Japan Tokyo China Beijing Thailand Bangkok Vietnam Hanoi Indonesia Jakarta Philippines "
    "Manila Pakistan Islamabad Afghanistan Kabul Iran Tehran Iraq Baghdad Syria Damascus Lebanon "
    "Beirut Jordan Amman Egypt Cairo Libya Tripoli Tunisia Tunis Morocco Rabat Kenya Nairobi "
    "Ghana Accra Cuba Havana Jamaica Kingston Peru Lima Chile Santiago Colombia Bogota Canada "
    "Ottawa Australia Canberra Taiwan Taipei Nepal Kathmandu Serbia Belgrade Croatia Zagreb "
    "Latvia Riga Estonia Tallinn Lithuania Vilnius Switzerland Bern Korea Seoul Qatar Doha "
    "Israel Jerusalem"
).split()
CAPITALS: dict[str, str] = dict(zip(_CAPITALS[::2], _CAPITALS[1::2], strict=True))
"""The capital of each country; all names are single words."""


def single_token(words: Sequence[str], model: Tokenizing | None, least: int) -> list[str]:
    """The words that are single tokens after a space in a text; all words without a model.

    Raises:
        InterpError: fewer than `least` words remain.
    """
    words = listed(words)
    kept = [word for word in words if model is None or word_size(word, model) == 1]
    if len(kept) < least:
        raise InterpError(
            f"words of one token in {'any model' if model is None else model.name}",
            f"{len(kept)} of {len(words)} ({', '.join(words[:4])} ...), {least} needed",
            "write the prompts for this vocabulary (Task.from_jsonl)",
        )
    return kept


def word_size(word: str, model: Tokenizing) -> int:
    """Number of tokens of a word after a space in a text; 0 if the vocabulary cannot write it."""
    return len(follows(model, BEFORE_WORDS, f" {word}") or ())

"""Texts to measure on: the passages that ship, a list, or a file that is read line by line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from interp.core.arguments import texts_of
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.schema import json_value

PASSAGES = Path(__file__).parent.parent / "data" / "passages.json"

Corpus = Path | Iterable[Prompt]
"""Texts or token ids; or a file: .jsonl with a "text" in every line, else a text in every line."""


@cache
def shipped_passages() -> tuple[str, ...]:
    """96 short English passages of two sentences each, in-house; most repeat a word or two."""
    return tuple(json.loads(PASSAGES.read_text(encoding="utf-8"))["passages"])


def texts_in(corpus: Corpus) -> Iterator[Prompt]:
    """The texts of a corpus, one after the other. Empty lines of a file are no texts.

    Of a file, only one line is in memory at a time.

    Raises:
        InterpError: the file is missing or not in UTF-8, or a line of a .jsonl file has no text.
    """
    if not isinstance(corpus, Path):
        yield from (texts_of(corpus) if isinstance(corpus, str) else corpus)
        return
    try:
        with corpus.open(encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text(corpus, number, line)
    except (OSError, UnicodeDecodeError) as error:
        found = (getattr(error, "strerror", None) or str(error)).lower()
        raise InterpError(f"the texts of {corpus}", found, "give a text file in UTF-8") from error


def _text(path: Path, number: int, line: str) -> str:
    """The text of a line."""
    if path.suffix != ".jsonl":
        return line.rstrip("\r\n")
    place = f"{path}, line {number}"
    row = json_value(line, place)
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text:
        raise InterpError(place, "no text", 'write {"text": "..."}')
    return text

"""What a text becomes once its verdict is changed: one classifier per published rule.

"Success" means that verification was disabled: the model no longer says that a correct sum works.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

from interp.core.errors import unknown
from interp.core.statistics import Estimate, share_estimate

Outcome = Literal["success", "partial", "fail", "ood", "empty"]
Rule = Literal["interp-1", "next_token", "v1", "final", "r1"]

_PIECE = re.compile(r"\d+|</?[A-Za-z_]+>|[A-Za-z_]+|[-()+*/=]")
_PLAIN = re.compile(r"\d+|[-()+*/=]|not")
_EXTRAS = set("so So the answer is equation that equals think".split()) | {
    "<answer>",
    "</answer>",
    "</think>",
}


def classify_outcome(text: str, rule: Rule = "interp-1") -> Outcome:
    """The class of what a model wrote from " (" on.

    `interp-1`, ours, uses whole words and what comes first:
    fail: "this works" occurs; partial: it does not, but an `<answer>` is given; success: the first
    word after " (" is "not" and neither occurs; empty: nothing was written; ood: anything else.

    Published rules, for comparison (ajyl/verify_circuit, ajyl/self_verification). They counted
    empty texts as success; here these are a class of their own:
    `next_token`: "not" first is success, "this" first fail.
    `v1`: neither "this works" nor `<answer>` is success, `<answer>` alone partial, "this works"
    fail.
    `final`: "this works" is fail; numbers, operators and "not" alone are success; with words of
    the closing sentence partial; then "not correct" is success, "not" with "correct" or
    `<answer>` partial, any other "not" (inside words too) success; the rest ood.
    `r1`: as final, but tried in the order of the 14B script: no other "not" counts, and one with
    "Wait" or "That works" is partial.

    Raises:
        InterpError: no such rule.
    """
    if rule not in get_args(Rule):
        raise unknown("outcome rule", rule, get_args(Rule))
    if not text.strip():
        return "empty"
    return _RULES[rule](text)


def outcomes(texts: Sequence[str], rule: Rule = "interp-1") -> dict[Outcome, Estimate]:
    """The share of every class among many texts, with Wilson's interval; they add up to one."""
    found = Counter(classify_outcome(text, rule) for text in texts)
    return {name: share_estimate(found[name], len(texts)) for name in get_args(Outcome)}


def _first_word(text: str) -> str:
    words = re.findall(r"[A-Za-z]+", text)
    return words[0] if words else ""


def _ours(text: str) -> Outcome:
    if re.search(r"\bthis\s+works\b", text):
        return "fail"
    if "<answer>" in text:
        return "partial"
    return "success" if _first_word(text) == "not" else "ood"


def _next_token(text: str) -> Outcome:
    verdicts: dict[str, Outcome] = {"not": "success", "this": "fail"}
    return verdicts.get(_first_word(text), "ood")


def _v1(text: str) -> Outcome:
    if "this works" in text:
        return "fail"
    return "partial" if "<answer>" in text else "success"


def _final(text: str) -> Outcome:
    if "this works" in text:
        return "fail"
    if (plain := _by_pieces(text)) is not None:
        return plain
    if "not correct" in text:
        return "success"
    if "not" in text and ("correct" in text or "<answer>" in text):
        return "partial"
    return "success" if "not" in text else "ood"


def _r1(text: str) -> Outcome:
    if (plain := _by_pieces(text)) is not None:
        return plain
    if "not" in text:
        return "partial" if "Wait" in text or "That works" in text else "ood"
    return "fail" if "this works" in text else "ood"


def _by_pieces(text: str) -> Outcome | None:
    """Success or partial by the words that occur; None if other words occur."""
    others = [piece for piece in _PIECE.findall(text) if not _PLAIN.fullmatch(piece)]
    if not others:
        return "success"
    return "partial" if set(others) <= _EXTRAS else None


_RULES = {"interp-1": _ours, "next_token": _next_token, "v1": _v1, "final": _final, "r1": _r1}

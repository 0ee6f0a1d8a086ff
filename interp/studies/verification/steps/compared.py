"""What the verdict compares: the model's own attempts, edited in one place each.

Every condition changes one thing in texts that the model wrote and judged itself, and asks for the
verdict again. Only numbers of as many digits are put in, so that length gives nothing away.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from interp.core.statistics import auc_estimate
from interp.runs.next_tokens import ablate
from interp.studies.steps import Result, mean_of, plain, share_of
from interp.studies.verification.samples import Samples
from interp.studies.verification.settings import VerdictContext, names_target
from interp.tasks.countdown import SHORT, TEMPLATES, make_countdown, write_trace

WORDINGS = {
    "target first": """\
Create an equation that equals {target}, using the numbers {numbers}.
<think> Let's try different combinations:
-""",
    "target named once more": """\
The target is {target}. Using the numbers {numbers}, create an equation that equals {target}.
<think> Let's try different combinations:
-""",
    "as a question": """\
How can you reach {target} with the numbers {numbers}?
<think> Let's try different combinations:
-""",
}
"""Other wordings of the short prompt, which no model here was trained on."""

LARGE = (100, 299)
"""Targets of three digits; the models here were trained on two."""

OWN_VALID, OWN_INVALID = "own valid attempts", "own invalid attempts"

EditedText = tuple[int, ...]
AttemptEdit = Callable[[VerdictContext, Samples, int], EditedText | None]
"""The edited text of a sample; None if the sample does not allow the edit."""


def compared(context: VerdictContext) -> Result:
    """How edited attempts are judged, one row for each condition.

    words: what was edited. expected: the verdict if the model compares the written result with the
    target of the question. this: share judged "this", among "this" and "not". log_odds: mean of log
    P(this) - log P(not). auc: how well it separates the condition's texts from the model's own
    valid attempts (1 if they are judged invalid throughout, 1/2 if the edit changes nothing); for
    conditions that expect "this", from its own invalid attempts. Conditions that no text allows
    are left out.
    """
    test = context.test
    valid, invalid = (test.take(np.flatnonzero(test.valid == side)) for side in (True, False))
    found: Result = {"rows": []}
    odds: dict[tuple[str, str], np.ndarray] = {
        (OWN_VALID, "this"): _judged(context, valid, valid.tokens),
        (OWN_INVALID, "not"): _judged(context, invalid, invalid.tokens),
    }
    for condition, (samples, edit) in _conditions(valid, invalid).items():
        edited = [edit(context, samples, i) for i in range(len(samples))]
        odds[condition] = _judged(context, samples, edited)
    ids = context.ids
    for condition, texts in (_reworded(context, valid) | _large(context)).items():
        seen = ablate(context.model, texts, [], tokens=[ids.this, ids.no])
        odds[condition] = seen.log_odds[0]
    for (words, expected), mine in odds.items():
        if not len(mine):
            continue
        sides = {
            True: mine if expected == "this" else odds[OWN_VALID, "this"],
            False: mine if expected == "not" else odds[OWN_INVALID, "not"],
        }
        labels = np.repeat(list(sides), [len(side) for side in sides.values()])
        found["rows"].append(
            {
                "words": words,
                "expected": expected,
                "this": share_of(mine > 0),
                "log_odds": mean_of(mine),
                "auc": plain(auc_estimate(np.concatenate(list(sides.values())), labels)),
            }
        )
    return found


def _judged(
    context: VerdictContext, samples: Samples, texts: Sequence[EditedText | None]
) -> np.ndarray:
    """The log-odds of "this" behind the edited texts of some samples; None is left out.

    An edited text is run from its first edited token on, if the runs of the test samples are kept.
    """
    chosen = [i for i, text in enumerate(texts) if text is not None]
    some, ids = [text for text in texts if text is not None], context.ids
    if not some:
        return np.zeros(0)
    context.runs(context.test.tokens, 1)  # those of `samples` are taken from it
    if (runs := context.runs(samples.tokens, 1)) is None:
        return ablate(context.model, some, [], tokens=[ids.this, ids.no]).log_odds[0]
    logits = runs.select(chosen).edited_logits(some)[:, [ids.this, ids.no]].double()
    return (logits[:, 0] - logits[:, 1]).cpu().numpy()


def _conditions(
    valid: Samples, invalid: Samples
) -> dict[tuple[str, str], tuple[Samples, AttemptEdit]]:
    """Samples and how they are edited, by words and the expected verdict."""
    return {
        ("result off in its last digit", "not"): (valid, _digit(-1)),
        ("result off in its first digit", "not"): (valid, _digit(0)),
        ("result with its digits reversed", "not"): (valid, _reversed),
        ("result replaced by a number of the question", "not"): (valid, _operand),
        ("another target in the question alone", "not"): (valid, _target(question=True)),
        ('another target in earlier "(not ...)" alone', "this"): (valid, _target(earlier=True)),
        ("another target in both", "not"): (valid, _target(question=True, earlier=True)),
        ("a false sum whose written result is the target", "this"): (invalid, _as_written),
    }


def _digit(place: int) -> AttemptEdit:
    """The result with one digit changed."""

    def edit(context: VerdictContext, samples: Samples, i: int) -> EditedText | None:
        digits, rng = str(samples.written[i]), _rng(context, i)
        least = "1" if place == 0 else "0"
        others = [x for x in "0123456789" if x >= least and x != digits[place]]
        changed = list(digits)
        changed[place] = rng.choice(others)
        return _with_result(context, samples, i, "".join(changed))

    return edit


def _reversed(context: VerdictContext, samples: Samples, i: int) -> EditedText | None:
    digits = str(samples.written[i])
    other = digits[::-1]
    return None if other == digits or other[0] == "0" else _with_result(context, samples, i, other)


def _operand(context: VerdictContext, samples: Samples, i: int) -> EditedText | None:
    """The result replaced by one of the question's numbers that has as many digits."""
    target = samples.written[i]
    numbers = context.problems[samples.problems[i]].numbers
    fit = [x for x in numbers if x != target and len(str(x)) == len(str(target))]
    if not fit:
        return None
    return _with_result(context, samples, i, str(_rng(context, i).choice(fit)))


def _as_written(context: VerdictContext, samples: Samples, i: int) -> EditedText | None:
    return _with_result(context, samples, i, str(context.problems[samples.problems[i]].target))


def _target(*, question: bool = False, earlier: bool = False) -> AttemptEdit:
    """The target replaced in the question, in earlier verdicts, or in both.

    Only texts that name it in an earlier verdict are edited, so that the three can be compared.
    """

    def edit(context: VerdictContext, samples: Samples, i: int) -> EditedText | None:
        asked, target = samples.asked[i], str(samples.written[i])
        strings = context.model.strings(samples.tokens[i])
        named = [end for end in samples.targets[i] if names_target(strings, end, target)]
        asked, named = ([end for end in named if (end in asked) is side] for side in (True, False))
        if not asked or not named:
            return None
        low = 10 ** (len(target) - 1)
        free = [x for x in range(low, 10 * low) if str(x) != target]
        new = context.model.token_id(str(_rng(context, i).choice(free)))
        text = list(samples.tokens[i])
        for end in [*(asked if question else ()), *(named if earlier else ())]:
            text[end - len(new) + 1 : end + 1] = new
        return tuple(text)

    return edit


def _with_result(
    context: VerdictContext, samples: Samples, i: int, result: str
) -> EditedText | None:
    """A text whose written result is another number of as many digits."""
    new = context.model.token_id(result)
    old = context.model.token_id(str(samples.written[i]))
    if len(new) != len(old):
        return None
    text = samples.tokens[i]
    assert text[-1 - len(old) : -1] == tuple(old)
    return (*text[: -1 - len(old)], *new, text[-1])


def _reworded(context: VerdictContext, valid: Samples) -> dict[tuple[str, str], list[EditedText]]:
    """Valid attempts behind other wordings of the short prompt; none for other templates."""
    if TEMPLATES.get(context.settings.template, context.settings.template) != SHORT:
        return {}
    found: dict[tuple[str, str], list[EditedText]] = {}
    for name, wording in WORDINGS.items():
        texts = []
        for tokens, number in zip(valid.tokens, valid.problems, strict=True):
            problem, text = context.problems[number], "".join(context.model.strings(tokens))
            rest = text[text.index(problem.prompt()) + len(problem.prompt()) :]
            texts.append(context.model.tokenize(problem.prompt(wording) + rest).tokens)
        found[f"worded otherwise: {name}", "this"] = texts
    return found


def _large(context: VerdictContext) -> dict[tuple[str, str], list[EditedText]]:
    """Right and wrong attempts at targets of three digits, written for the model."""
    if TEMPLATES.get(context.settings.template, context.settings.template) != SHORT:
        return {}
    rng = random.Random(context.settings.seed)
    problems = make_countdown(
        len(context.test) // 2, operands=context.settings.operands, targets=LARGE,
        seed=context.settings.seed,
    )  # fmt: skip
    found: dict[tuple[str, str], list[EditedText]] = {}
    for words, solved in (("right", True), ("wrong", False)):
        texts = []
        for problem in problems:
            trace = write_trace(problem, rng, failures=int(not solved), solved=solved)
            attempt = trace[: trace.index(" (")] + " ("
            texts.append(context.model.tokenize(problem.prompt() + attempt).tokens)
        expected = "this" if solved else "not"
        found[f"{words} attempts at targets of three digits", expected] = texts
    return found


def _rng(context: VerdictContext, i: int) -> random.Random:
    return random.Random(f"{context.settings.seed} {i}")

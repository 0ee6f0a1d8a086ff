"""Greedy text from a model, with a key/value cache: plain, changed, or changed at a trigger.

With a trigger, generation follows the unmodified model, except that the token after each trigger is
taken from a run in which a change is in force. This is the protocol of Lee et al. 2025 (arXiv
2504.14379; ajyl/self_verification), who computed the whole batch anew at every step. Several
changes of the same prompts share the plain run as long as their texts are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from interp.core.arguments import reads_arguments, stops_of, texts_of
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.run_options import Progress
from interp.core.schema import Count, checked
from interp.engine.memory import says_too_little
from interp.engine.stopping import StopCheck, stoppable
from interp.models.language_model import LanguageModel
from interp.runs.change import Change, Where, changes_in
from interp.runs.intervened import intervened_texts
from interp.runs.text_runs import ChangedText, Generation, TextRun, extended, in_batches


@reads_arguments
@says_too_little
def generate(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    max_new_tokens: int,
    *,
    change: Change | None = None,
    trigger: str | int | None = None,
    where: Where = "all",
    stop: Sequence[str] = (),
    rows: int = 96,
    progress: Progress | None = None,
    cancelled: StopCheck = lambda: False,
) -> list[Generation]:
    """The greedy continuation of every prompt.

    Inside `interp.intervene` every token comes from the changed model, as if the whole text were
    run again for each token (`intervene` says what "last" means in a text that grows). Keys and
    values are cached if the fast engine can apply the changes; else each token costs a whole run.

    Args:
        model: a model with a fast engine; any model inside `intervene`.
        prompts: texts or token tuples, or a task (its clean prompts). If a change has one value per
            prompt, the values are in this order.
        max_new_tokens: the largest number of new tokens of a text.
        change: what is in force when the trigger fires.
        trigger: one token, as text such as " (" or as its id; the change is in force for the
            token after it. With a change and no trigger, it is in force at every step.
        where: which tokens the changed run changes: "all" of them, those of the prompt too, like a
            hook without positions; or the last k up to and including the trigger, after a past that
            is the plain run's.
        stop: a text also ends when its new part contains one of these; one string is one mark.
        rows: texts decoded together; affects time and memory only.
        progress: called with (texts finished, texts in total).
        cancelled: asked in every layer; the run stops when it returns True.

    Raises:
        InterpError: no fast engine, a trigger that is not one token, values per position that do
            not fit `where`, a change that the engine cannot make or that has positions of its own,
            a component that the model lacks, a change inside `intervene`, or more tokens than the
            model has positions.
    """
    if (trigger is not None or where != "all") and change is None:
        raise InterpError(
            f"trigger={trigger!r}, where={where!r}", "nothing to change", "give a change"
        )
    with stoppable(cancelled):
        [made] = generate_each(
            model,
            prompts,
            [change],
            max_new_tokens=max_new_tokens,
            trigger=trigger,
            where=where,
            stop=stop,
            rows=rows,
            progress=progress,
        )
    return made


def generate_each(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    changes: Sequence[Change | None],
    *,
    max_new_tokens: int,
    trigger: str | int | None = None,
    where: Where = "all",
    stop: Sequence[str] = (),
    rows: int = 96,
    progress: Progress | None = None,
) -> list[list[Generation]]:
    """What `generate` gives for each of several changes (None: the plain text), in their order.

    The prompts are run once, and the changes share the plain run as long as their texts are equal.

    Raises:
        InterpError: see `generate`.
    """
    encoded = [model.tokenize(prompt).tokens for prompt in texts_of(prompts)]
    stop, rows = stops_of(stop), checked(Count, rows, "rows decoded together")
    options = {"max_new_tokens": max_new_tokens, "rows": rows, "progress": progress}
    with model.lock:
        if model.active and changes == [None]:
            return [intervened_texts(model, encoded, stop, **options)]
    model.refuse_changed("generating with a change", "intervene() alone, for this change too")
    model.require_decoder("generating")
    fires = None if trigger is None else model.single_token(trigger, "trigger")
    if where != "all":
        where = checked(Count, where, "where, other than 'all'")
    every = [change for change in changes if change is not None]
    changes_in(model, every, "generating with")
    for change in every:
        change.require_engine("generating with")
        change.require(encoded, where)
        if any(edit.positions != "all" for edit in change.edits):
            found = "it has positions of its own, which a text that grows does not have"
            do = "give where=, or use intervene(), which finds positions in every run"
            raise InterpError(f"generating with {change.name}", found, do)
    if fires is None and where == "all" and len(every) == len(changes):
        extends = (partial(extended, change=change) for change in every)
        runs = (partial(ChangedText, model, extend, stop) for extend in extends)
        return [in_batches(run, encoded, **options)[0] for run in runs]
    # The guess is that half of the texts stay equal.
    options["rows"] = max(1, 2 * rows // (1 + len(changes)))
    run = partial(TextRun, model, changes, fires, where, stop)
    return in_batches(run, encoded, **options)

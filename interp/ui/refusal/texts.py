"""A prompt answered three times: plainly, steered, and steered along a random direction."""

from __future__ import annotations

from typing import Any

import streamlit as st

from interp.core.chat_prompts import ChatPrompts
from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.refusal.judging import LEAST_TOKENS, RULES, judge_replies, replies_of
from interp.refusal.score import score_refusals
from interp.results.direction import STUDY_FILE, Direction, random_direction
from interp.steering.edits import Steering, ablate_direction, add_direction
from interp.steering.runs import generate_steered, run_steered
from interp.studies.study import Study
from interp.ui.prompts.frame import load_call
from interp.ui.refusal.model import (
    choose_direction,
    example_prompts,
    fitted,
    kept_directions,
    prompts_on,
    tokens_of,
)
from interp.ui.shared import offered, widgets
from interp.ui.shared.cache import HASHES
from interp.ui.studies.model import loaded_model
from interp.ui.studies.open_study import MadeNow

ADD, ABLATE = "add - direction", "ablate direction"
MOST_DOSE = 8.0

Wish = tuple[str, str, str, float, int, int]
"""A prompt, a kind of direction, a method, its dose, a seed and the most new tokens."""


def side_by_side(study: Study[Any]) -> MadeNow | None:
    """The controls, and the three texts once asked for."""
    directions = kept_directions(study)
    if not directions:
        return None
    model = loaded_model(study)
    prompt = _prompt(study)
    first, second, third = st.columns([3, 2, 3], vertical_alignment="bottom")
    direction = choose_direction(directions, key="steered-direction", into=first)
    method = second.segmented_control(
        "Method", [ADD, ABLATE], default=ADD, required=True, key="steered-method"
    )
    dose = third.slider(
        "Dose: times the raw direction",
        0.0,
        MOST_DOSE,
        min(_usual(study, direction), MOST_DOSE),
        0.25,
        disabled=method == ABLATE,
        key=f"steered-dose-{study.directory.name}-{direction.kind}",
        help="The direction is subtracted: a larger dose steers further away from refusal. An "
        "ablation has no dose.",
    )
    left, middle, right = st.columns([2, 2, 4], vertical_alignment="bottom")
    seed = int(left.number_input("Seed of the random direction", 0, None, 0, key="steered-seed"))
    usual, key = max(8, study.settings.max_new_tokens), f"steered-most-{study.directory.name}"
    most = int(middle.number_input("New tokens", 8, max(400, usual), usual, key=key))
    asked: Wish = (prompt, direction.kind, method, dose if method == ADD else 1.0, seed, most)
    disabled = model is None or not prompt.strip()
    shown = widgets.generate_button(asked, key="steered-texts", into=right, disabled=disabled)
    st.caption(
        f"Greedy decoding, three texts of at most {most} tokens. A text cut off before "
        f"{LEAST_TOKENS} tokens is not judged an answer."
    )
    if model is None or not shown:
        return None
    try:
        prompts = prompts_on(model, study, [prompt])
        made = written(
            model,
            prompts,
            prompt,
            fitted(direction, model, prompts),
            method=method,
            dose=asked[3],
            seed=seed,
            most=most,
            tokens=tokens_of(study, model),
        )
    except InterpError as error:
        widgets.show_error(error)
        return None
    python = _python(model, study, prompt, direction, asked)
    return MadeNow(rows=_show(made), python=python)


def _usual(study: Study[Any], direction: Direction) -> float:
    """The dose that the study chose for subtracting this direction; 1 if it chose none."""
    for name, found in study.results.items():
        if name.startswith("dose_") and found["name"] == f"{ADD[:5]} {direction.kind}":
            return float(found["dose"])
    return 1.0


def _prompt(study: Study[Any]) -> str:
    known = example_prompts(study)
    choice = st.selectbox(
        "Example",
        range(len(known)),
        format_func=lambda i: " ".join(known[i].split())[:110],
        key=f"steered-example-{study.directory.name}",
    )
    return st.text_area(
        "The prompt (change it, or type your own)",
        known[choice],
        height=90,
        key=f"steered-text-{study.directory.name}-{choice}",
    )


@st.cache_resource(
    max_entries=32,
    show_spinner="Writing three texts …",
    hash_funcs={
        **HASHES,
        ChatPrompts: lambda prompts: f"{prompts.rows} {prompts.format}",
        Direction: lambda one: f"{one} {one.model_hash} {one.sign} {one.vector.tolist()}",
    },
)
def written(
    model: LanguageModel,
    prompts: ChatPrompts,
    text: str,
    direction: Direction,
    *,
    method: str,
    dose: float,
    seed: int,
    most: int,
    tokens: tuple[int, ...],
) -> widgets.Rows:
    """The plain text, the steered one, and one steered along a random direction of equal length.

    Each row has the text, its label by the rules, its refusal score if there are tokens, and how
    many times the run was changed and by how much.

    Raises:
        InterpError: no fast engine, or a direction that does not fit.
    """

    def steering(one: Direction) -> Steering:
        if method == ABLATE:
            return ablate_direction(model, one)
        return add_direction(model, one, coefficient=-dose)

    edits = {
        "baseline": None,
        method: steering(direction),
        "matched random direction": steering(random_direction(direction, seed=seed)),
    }
    rows = []
    for name, edit in edits.items():
        (one,), tally = generate_steered(model, prompts, edit, max_new_tokens=most)
        judged = judge_replies(replies_of(["prompt"], [text], [one]), RULES)
        score = None
        if tokens:
            score = float(score_refusals(run_steered(model, prompts, edit).logits, tokens)[0])
        row = {"run": name, "text": one.text, "label": judged.labels[0], "score": score}
        changes = {"changes": int(tally.tokens[0]), "mean length": float(tally.norm[0])}
        rows.append(row | changes)
    return rows


def _python(
    model: LanguageModel, study: Study[Any], prompt: str, direction: Direction, asked: Wish
) -> str:
    """The three texts again."""
    _, _, method, dose, seed, most = asked
    system = study.settings.system
    behind = "" if system is None or offered.is_shared() else f", system={system!r}"
    steering = (
        "interp.steering.ablate_direction(model, one)"
        if method == ABLATE
        else f"interp.steering.add_direction(model, one, coefficient={-dose})"
    )
    return (
        f"from dataclasses import replace\n\n{load_call(model)}\n"
        f"study = interp.studies.kept_study({study.directory.name!r})\n"
        f"kept = interp.results.load_directions(study.directory / {STUDY_FILE!r})\n"
        f"prompts = interp.models.chat_prompts(model, {[prompt]!r}{behind})\n"
        f"one = replace(kept[{direction.kind!r}], model_hash=model.hash, format=prompts.format)\n"
        f"other = interp.results.random_direction(one, seed={seed})\n"
        f"options = {{'max_new_tokens': {most}}}\n"
        "print(interp.steering.generate_steered(model, prompts, None, **options)[0][0].text)\n"
        "for one in (one, other):\n"
        f"    steering = {steering}\n"
        "    texts, tally = interp.steering.generate_steered(model, prompts, steering, **options)\n"
        "    print(texts[0].text)"
    )


def _show(rows: widgets.Rows) -> widgets.Rows:
    for column, row in zip(st.columns(3), rows, strict=True):
        score = widgets.maybe(row["score"])
        about = f"Judged **{widgets.plain(row['label'])}** · refusal score {score}"
        widgets.generated_text(row["run"], row["text"], about, into=column)
        if row["run"] != "baseline":
            changed = f"{row['changes']} changes, mean length {row['mean length']:z.2f}"
            column.caption(changed if row["changes"] else "nothing was changed")
    return rows

"""Interventions: components changed after any prompt, beside matched random ones."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from interp.core.errors import InterpError
from interp.core.statistics import range_of_draws
from interp.models.language_model import LanguageModel
from interp.overview.change_trial import ChangeTrial
from interp.overview.planned_changes import HOWS, WHENS, PlannedChange
from interp.plots.lines import interval_lines, values_with_null
from interp.plots.style import CHOSEN, SOFT
from interp.results.direction import kept_directions
from interp.ui.prompts import frame
from interp.ui.shared import cache, offered, opening, prompts, widgets
from interp.ui.shared.prompts import AskedPrompt
from interp.ui.shared.state import current, fit, select

COLUMNS = ("component", "how", "strength", "when", "direction")
OWN = "prompt - foil"
SECTIONS = {"next": "Next token", "dose": "Dose", "texts": "Texts"}
DOSES = tuple(f"{x / 4:g}" for x in range(9))
NEW = "Components: L20H0 (head), L20N100 (neuron), L5.mlp_out, L5.attn_out, L5.resid_post (stream)."
ONE = (
    "One logit more of difference makes the odds of the two tokens 2.7 times as large. An effect "
    "counts if it is beyond that of the random changes. **What next?** *Dose*: does it grow with "
    "the dose? *Texts*: what does the model write? Then test it on a set of pairs, on Patching."
)
HELP = {
    "how": "zero: x becomes 0. mean: the mean over the tokens of prompt and foil. patch: its value "
    "at the same token of the foil. scale: strength · x. steer: x + strength · d. project out: x "
    "without its part along d. d is the component's value at the last token of the prompt minus "
    "that of the foil, or a kept direction.",
    "strength": "zero, mean, patch, project out: 1 goes all the way, 0 changes nothing. scale: the "
    "factor. steer: how many times d is added.",
    "when": "all tokens: of the prompt and generated ones. last token: of the prompt. generated "
    "tokens: they cannot change the next token, only the text after it.",
    "direction": "What steer and project out move along: the difference of prompt and foil, or a "
    "direction that a study or the page Directions keeps (for L5.resid_post, L5.mlp_out ...).",
}


def _show() -> None:
    opening.intro(
        "Interventions",
        does="It changes heads, neurons, MLPs or the stream of a layer while the model reads your "
        "prompt, and shows what that does to the next token and to the text.",
        when="To test an idea on one prompt, on any model; no study is needed.",
        lacks="One prompt has no interval: the comparison is with the same change of random "
        "components of the same kind. A set of prompts is tested on Patching.",
    )
    if (opened := prompts.opened("Try", ":material/content_cut:")) is None:
        return
    fit(dose=DOSES)
    model, asked = opened
    _tried(model, prompts.by_first_tokens(model, asked))


@st.fragment
def _tried(model: LanguageModel, asked: AskedPrompt) -> None:
    """The table, and what its changes do: a change of the table reruns this part alone."""
    left, right = st.columns([3, 2], gap="large")
    with left:
        try:
            rows = _table(_usual(model, asked), [*kept_directions(model)])
        except InterpError as error:
            widgets.show_error(error)
            return
    with right:
        options = _controls(model, asked)
    try:
        for row in rows:
            PlannedChange.parse(row)
        if all(row.endswith(", off") for row in rows):
            st.info(
                "Every change is off: switch one on, or add a row.", icon=":material/toggle_off:"
            )
            return
        given = asked.given(model)
        _results(cache.trial(model, given, rows, **options), rows, options, asked)
    except InterpError as error:
        widgets.show_error(error)


def _usual(model: LanguageModel, asked: AskedPrompt) -> tuple[str, ...]:
    """An example for any prompt: the head that writes most into the answer, set to zero."""
    middle, head = model.n_layers // 2, f"L{model.n_layers // 2}H0"
    if model.decoder is not None:
        seen = cache.look(model, asked.given(model), asked.answer, asked.wrong)
        head = seen.attribution().top(1, kind="head")[0].label
    stream = f"L{middle}.resid_post"
    rows = [f"{head}, zero", f"L{middle}.mlp_out, scale, 0.5, all tokens, off"]
    rows.append(f"{stream}, {'scale, 1.5' if asked.foil is None else 'steer, 1'}, last token, off")
    return tuple(str(PlannedChange.parse(row)) for row in rows)


def _table(usual: tuple[str, ...], directions: list[str]) -> tuple[str, ...]:
    """The table of changes, as the texts of its rows; an edit is written into the selection.

    The editor keeps its own edits, so its first rows stay as they were until the selection is
    changed from elsewhere.
    """
    wanted, state = current().changes or usual, st.session_state
    if state.get("changes-now") != wanted:
        state["changes-first"] = pd.DataFrame([_cells(row) for row in wanted])
        state["changes-number"] = state.get("changes-number", 0) + 1
    edited = st.data_editor(
        state["changes-first"],
        key=f"changes-{state['changes-number']}",
        num_rows="dynamic",
        hide_index=True,
        row_height=32,
        column_config={
            "on": st.column_config.CheckboxColumn("on", default=True, width=50),
            "component": st.column_config.TextColumn("component", width=130, help=NEW),
            "how": st.column_config.SelectboxColumn(
                "how", options=HOWS, default="zero", required=True, width=110, help=HELP["how"]
            ),
            "strength": st.column_config.NumberColumn(
                "strength", default=1.0, format="%g", width=80, help=HELP["strength"]
            ),
            "when": st.column_config.SelectboxColumn(
                "when", options=WHENS, default=WHENS[0], required=True, width=140, help=HELP["when"]
            ),
            "direction": st.column_config.SelectboxColumn(
                "direction",
                options=[OWN, *directions],
                default=OWN,
                required=True,
                help=HELP["direction"],
            )
            if directions
            else None,
        },
    )
    rows = tuple(text for text in map(_text, edited.to_dict("records")) if text)
    state["changes-now"] = rows
    if rows != wanted:
        select(changes=rows)
    if not rows:  # the last one was removed: the example again
        st.rerun()
    st.caption(
        f"{NEW} Write into the last, empty row to add one. To remove one, click left of it and "
        "press Delete."
    )
    return rows


def _cells(text: str) -> dict[str, Any]:
    """The cells of a row's text; what is odd stays as it is, to be named and mended."""
    parts = [part.strip() for part in text.split(",")]
    on = parts[-1] != "off"
    shown = dict(zip(COLUMNS, parts if on else parts[:-1]))  # noqa: B905
    try:
        strength = float(shown.get("strength", 1))
    except ValueError:
        strength = 1.0
    cells = {"component": shown["component"], "how": shown.get("how", HOWS[0])}
    cells |= {"strength": strength, "when": shown.get("when", WHENS[0])}
    return {"on": on, **cells, "direction": shown.get("direction", OWN)}


def _text(row: dict[str, Any]) -> str:
    """A row of the table as text; "" for one that names no component yet."""
    component = str(row["component"] or "").strip()
    if not component or component == "nan":
        return ""
    strength = 1.0 if row["strength"] is None else row["strength"]
    text = f"{component}, {row['how']}, {strength:.12g}, {row['when']}"
    if row["direction"] not in (None, OWN):
        text = f"{text}, {row['direction']}"
    return text if row["on"] else f"{text}, off"


def _controls(model: LanguageModel, asked: AskedPrompt) -> dict[str, Any]:
    """The dose, and the random changes; with the prompt's foil and answers."""
    widgets.picker(
        st.select_slider,
        "Dose: how far every change goes",
        "dose",
        shown=current().dose or "1",
        options=DOSES,
        help="x + dose · (new - x) in place of every new value: 0 is the plain model, 1 the table.",
    )
    first, second, third = st.columns([2, 2, 3], vertical_alignment="bottom")
    draws, seed = widgets.choose_draws("Random changes", first, second)
    third.button(
        "Back to the example",
        icon=":material/restart_alt:",
        on_click=select,
        kwargs={"changes": (), "dose": None},
        help="The head that writes most into the answer, set to zero.",
    )
    return {
        "foil": asked.given_foil(model),
        "answer": asked.answer,
        "wrong": asked.wrong,
        "draws": draws,
        "seed": seed,
        "dose": float(current().dose or 1),
    }


def _results(
    made: ChangeTrial, rows: tuple[str, ...], options: dict[str, Any], asked: AskedPrompt
) -> None:
    """The metric plain, changed and under random changes; then one section."""
    null = made.null
    low, high = range_of_draws(made.drawn)
    told = f"{made.drawn.mean():+z.3f} [{low:+z.3f}, {high:+z.3f}]"
    widgets.facts(
        {
            "metric, in logits": made.words,
            "plain": f"{made.plain:+z.3f}",
            "changed": f"{made.changed:+z.3f}",
            "effect": f"{made.changed - made.plain:+z.3f}",
            f"under {null.draws} random changes": told,
            "|effect| among theirs": null.beside.rpartition(", ")[2],
        }
    )
    st.caption(ONE)
    _directions(made)
    frame.soft_cap(
        made.model,
        "The metric here is of capped logits, which decide the text. Look, Heads and Neurons add "
        "up the logits before the cap, whose differences are larger.",
    )
    if null.draws < options["draws"]:
        st.caption(
            f"There are no more than {null.draws} different random changes of this kind: few other "
            "components in these layers."
        )
    own = {frozenset(map(str, made.changes))} & {frozenset(map(str, one)) for one in made.random}
    if own and not all(row.along for row in made.changes):
        st.caption(
            "The changed components are themselves among the random ones: their layers have too "
            "few others."
        )
    if all(row.when == "generated tokens" for row in made.changes):
        st.info("These changes begin after the next token: see Texts.", icon=":material/notes:")
    shown = widgets.choose("What to look at", "tried", SECTIONS, segments=True)
    given = asked.given(made.model)
    if shown == "next":
        _next(made)
    elif shown == "dose":
        _doses(made, partial(cache.dose_curve, made.model, given, rows, **options))
    else:
        write = partial(cache.changed_texts, made.model, given, rows, **options)
        _texts(made, write, (rows, options))
    widgets.caveat(
        "Zeros and large doses put the model where it never is: an effect may be damage. A rank "
        "among random changes is no p-value if the component was chosen for its effect. Random: "
        "heads and neurons of the same layers, an MLP or stream of other layers; steering and "
        "projections of a whole site get random directions of the same length, which are easily "
        "beaten, because the stream varies little along most of them; compare with differences of "
        "two tokens."
    )
    _export(made, rows, options, asked)


def _directions(made: ChangeTrial) -> None:
    """The stricter comparisons of a whole site that is moved along a direction."""
    if made.harder is None:
        return
    low, high = range_of_draws(made.harder)
    rank = made.null_of(made.harder)
    told = f"{made.harder.mean():+z.3f} [{low:+z.3f}, {high:+z.3f}]"
    facts = {
        f"{rank.draws} differences of two tokens": told,
        "|effect| among them": rank.beside.rpartition(", ")[2],
    }
    if made.towards is not None:
        facts["aimed at the answer, by unembeddings"] = f"{made.towards:+z.3f}"
    widgets.facts(facts)
    st.caption(
        "Stricter than random directions, of the same length: differences of the site's values at "
        "two random tokens of prompt and foil, along which it does vary; and the answer's "
        "unembedding minus the other one's."
    )


def _next(made: ChangeTrial) -> None:
    left, right = st.columns([1, 1], gap="large")
    drawn = values_with_null(
        ["plain", "changed"],
        [made.plain, made.changed],
        low=[widgets.UNKNOWN] * 2,
        high=[widgets.UNKNOWN] * 2,
        null=[None, made.drawn.tolist()],
        value_title=f"{made.words} (logits)",
        value_label="this run",
        null_label="random changes, a point each; shaded: 95 % of them",
    )
    low, high = range_of_draws(made.drawn)
    drawn.add_vrect(low, high, fillcolor=SOFT, opacity=0.15, line_width=0)
    widgets.figure(
        drawn, key="tried", title="The metric", alt="Metric plain, changed, random", into=left
    )
    with right:
        st.markdown("**The likeliest next tokens, before or after**")
        widgets.table(
            [
                {
                    "token": widgets.visible(token.text),
                    "plain": token.plain,
                    "changed": token.changed,
                    "random": token.random,
                    "random, 95 % range": widgets.span(token.low, token.high),
                }
                for token in made.tokens
            ],
            key="tried-tokens",
            most=10,
        )
        st.caption("Probabilities. Random: the mean over the random changes, and their range.")


def _doses(made: ChangeTrial, measure: Any) -> None:
    curve = measure()
    bare = (
        curve.changed,
        [widgets.UNKNOWN] * len(curve.doses),
        [widgets.UNKNOWN] * len(curve.doses),
    )
    drawn = interval_lines(
        {"changed": bare, "random changes, mean and 95 %": (curve.random.mean(0), *curve.band)},
        x=curve.doses.tolist(),
        x_title="dose",
        y_title=f"{made.words} (logits)",
        controls=["random changes, mean and 95 %"],
    )
    drawn.add_vline(x=made.dose, line={"color": CHOSEN, "width": 2, "dash": "dash"})
    widgets.legend_below(drawn, height=380, room=90)
    widgets.figure(drawn, key="dose-curve", alt="Metric by dose, with random changes")
    low, high = curve.band
    widgets.table(
        [
            {
                "dose": float(dose),
                "changed": float(curve.changed[i]),
                "random": float(curve.random[:, i].mean()),
                "random, 95 % range": widgets.span(float(low[i]), float(high[i])),
            }
            for i, dose in enumerate(curve.doses)
        ],
        key="dose-rows",
    )
    st.caption("0 is the plain model, 1 the table. Orange: the dose chosen above.")


def _texts(made: ChangeTrial, write: Any, of: object) -> None:
    first, second = st.columns([1, 3], vertical_alignment="bottom")
    most = _new_tokens()
    limits = {"min_value": 1, "max_value": 200}
    widgets.picker(first.number_input, "New tokens", "new_tokens", shown=most, **limits)
    if not widgets.generate_button((of, most), key="tried-texts", into=second, disabled=False):
        st.caption("Three greedy texts: plain, changed, and under the first random change.")
        return
    changes = ((), made.changes, made.random[0])
    for column, (name, text), rows in zip(st.columns(3), write(most).items(), changes, strict=True):
        ended = "ended by itself" if text.stopped else f"cut at {len(text.tokens)} tokens"
        widgets.generated_text(name, text.text, f":small[{ended}]", into=column)
        column.caption("; ".join(map(str, rows)))


def _new_tokens() -> int:
    return current().new_tokens or 30


def _export(
    made: ChangeTrial, rows: tuple[str, ...], options: dict[str, Any], asked: AskedPrompt
) -> None:
    """The numbers, and the call that gives them again."""
    foil = "" if asked.foil is None else f"    foil={asked.python(asked.foil)},\n"
    named = "".join(
        f"    {name}={value!r},\n"
        for name, value in options.items()
        if name != "foil" and value is not None
    )
    changes = "".join(f"        {row!r},\n" for row in rows)
    kept = "".join(
        f"# {name}: a direction kept on this machine, see interp.results.keep_direction\n"
        for name in made.directions
    )
    call = (
        f"{frame.load_call(made.model)}\n{kept}trial = interp.overview.try_changes(\n"
        f"    model,\n    {asked.python()},\n    [\n{changes}    ],\n{foil}{named})\n"
        "print(trial.plain, trial.changed, trial.null)"
    )
    if current().tried == "dose":
        call += "\nprint(trial.doses().changed)"
    elif current().tried == "texts":
        call += f"\nfor name, text in trial.texts({_new_tokens()}).items():\n    print(name, text)"

    def whole() -> dict[str, Any]:
        return {**made.to_dict(), "model": offered.without_paths(made.model.name)}

    frame.take_away("interventions", lambda: [asdict(one) for one in made.tokens], whole, call)


if __name__ == "__main__":
    _show()

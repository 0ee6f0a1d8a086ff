"""Runs: every kept result, to be noted, opened again, compared or deleted."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import streamlit as st

import interp
from interp.core.errors import InterpError
from interp.core.files import cache_dir, json_text
from interp.core.records import head_of
from interp.deltas.weight_trial import WeightTrial
from interp.overview.prompt_set import load_samples
from interp.probing.probes import Probes
from interp.results.comparison import ScoresDifference
from interp.results.kept import (
    LONGEST,
    KeptResult,
    delete_result,
    kept_files,
    kept_results,
    kept_scores,
    note_result,
    size_in_words,
)
from interp.results.scores import Scores
from interp.ui.prompts.scanned import read_scan
from interp.ui.runs.compare import show_trials, side_by_side, sweep_map
from interp.ui.runs.measured import show_measures
from interp.ui.runs.probed import show_probes
from interp.ui.runs.reopen import page_of, reopen
from interp.ui.shared import cache, export, offered, opening, widgets
from interp.ui.shared.state import current, may_see, select

TOY = "toy-induction"
COMPARED = ("sweep", "head measures", "change of weights")
TYPED = ("scan", "direction", "probes")
"""Kinds of results that are made from typed prompts."""

NOT_COMPARED = {
    "edge scores": "Scores of edges are compared as circuits: keep one of each on Circuits, and "
    "look at both there, under overlap.",
    "saved circuit": "Two kept circuits are compared on Circuits, under overlap: press Open.",
    "circuit evaluation": "Two circuits are compared by the edges they share, on Circuits under "
    "overlap; their curves of faithfulness are measured on other prompts each.",
    "circuit by token": "Two circuits are compared by the edges they share, on Circuits under "
    "overlap.",
    "scan": "Two scans are not compared: each chose its own components on one prompt, so a "
    "difference would have no interval. Compare two sweeps over a set of prompts.",
    "probes": "Two sets of probes are compared by their directions: "
    "`interp.probing.probe_geometry`.",
    "direction": "Two directions are compared by their cosine: "
    "`interp.steering.compare_directions`.",
}
"""Why results of a kind are not compared here, and where they are."""


def _show() -> None:
    opening.intro(
        "Runs",
        does="It lists every sweep, circuit, measure of heads, scan, direction, set of probes, "
        "change of weights and study that is kept on this machine, by the app, a notebook or the "
        "command line.",
        when="To open a result again, to write down what it was for, and to compare two "
        "sweeps, two measures of heads, or two changes of weights.",
        lacks="Results that were deleted or kept elsewhere. A difference of two models says that "
        "they differ here, not why.",
    )
    kept = [one for one in _kept() if may_see(one.task) and not _of_others(one)]
    if said := st.session_state.pop("runs-said", None):
        st.success(said, icon=":material/delete:")
    if not kept:
        st.info("No result is kept yet. Run the example, or a sweep on Patching.")
    if len(kept) < 2:
        _example()
    shown = _list(kept)
    names = {one.name: one for one in kept}
    chosen = _one(names, current().run, "run")
    if chosen is not None:
        _detail(chosen, names)
    elif shown:
        st.info("Click a row to open, note, compare or delete it.", icon=":material/ads_click:")


def _of_others(one: KeptResult) -> bool:
    """Whether it may come from the prompts that other visitors of a shared server typed."""
    return offered.is_shared() and one.kind in TYPED


def _kept() -> list[KeptResult]:
    """The kept results; read again when a file of theirs, or a note, changes."""
    stamps = [(str(one.path), one.made) for one in kept_files()]
    for path in (cache_dir() / "notes").glob("*.json"):
        with suppress(OSError):  # deleted in the meantime
            stamps.append((str(path), path.stat().st_mtime))
    return _read(tuple(sorted(stamps)))


@st.cache_data(max_entries=2, show_spinner="Reading the kept results …")
def _read(stamps: tuple[tuple[str, float], ...]) -> list[KeptResult]:
    return kept_results() if stamps else []


def _example() -> None:
    """Two sweeps of a toy, which take a second."""
    if widgets.start_button("Run the example"):
        with st.spinner("Patching every head of a toy, in both directions …"):
            model = interp.load_model(TOY)
            task = interp.load_task(TOY, model)
            for direction in ("denoise", "noise"):
                interp.activation_patching(model, task, direction=direction)
        newest, other = (one.name for one in kept_results()[:2])
        select(run=newest, beside=other)
        st.rerun()
    st.caption("The example patches every head of a toy with a planted circuit, in two directions.")


def _one(names: dict[str, KeptResult], name: str | None, field: str) -> KeptResult | None:
    """The result that the selection names; if it is not there, what happened and what to do."""
    if name is not None and name not in names:
        words = widgets.plain(name)
        st.warning(
            f"**{words} is not kept here.** It was deleted, or this link comes from another "
            "machine. Choose a result of the list, or ask the sender for its Python and run it.",
            icon=":material/link_off:",
        )
        st.button("Dismiss", key=f"dismiss-{field}", on_click=select, kwargs={field: None})
    return None if name is None else names.get(name)


def _list(kept: list[KeptResult]) -> list[KeptResult]:
    """The list, filtered by words and kinds."""
    if not kept:
        return []
    left, right = st.columns([2, 3], vertical_alignment="bottom")
    words = left.text_input(
        "Filter", key="runs-filter", placeholder="words of a model, task, kind or note"
    )
    kinds = list(dict.fromkeys(one.kind for one in kept))
    wanted = right.pills("Kinds", kinds, selection_mode="multi", key="runs-kinds") or kinds
    rows = [(one, _row(one)) for one in kept if one.kind in wanted and one.has(words)]
    names, run = [one.name for one, _ in rows], current().run
    if not rows:
        st.info("No kept result has all these words.", icon=":material/filter_alt_off:")
        return []
    widgets.table(
        [row for _, row in rows],
        key=f"runs-{len(kept)}",
        decimals=0,
        most=9,
        picked=lambda row: select(run=names[row]),
        chosen=names.index(run) if run in names else None,
    )
    total = sum(one.size for one in kept)
    st.caption(f"{len(rows)} of {len(kept)} results, {size_in_words(total)} in all.")
    return [one for one, _ in rows]


def _row(one: KeptResult) -> dict[str, str]:
    """What the list says of a result, without the server's folders."""
    row = one.row() | {"model": offered.without_paths(one.model)}
    return row | {name: row[name] or widgets.NONE for name in ("model", "task", "n")}


def _detail(chosen: KeptResult, names: dict[str, KeptResult]) -> None:
    """One result: what it is, a note on it, and what can be done with it."""
    st.subheader(widgets.plain(f"{chosen.kind.capitalize()}: {chosen.about}"), anchor=False)
    row = _row(chosen)
    widgets.facts(
        {
            "model": f"{row['model']} · {chosen.model_hash[:12] or widgets.NONE}",
            "precision": chosen.dtype or widgets.NONE,
            "task": row["task"],
            "made": row["when"],
            "size": row["size"],
            "file": chosen.name if chosen.place == "cache" else f"{chosen.name}, in the store",
        }
    )
    if offered.is_shared():
        st.caption(
            f"{widgets.plain(chosen.note)}  \nThis server is shared: nothing is noted or deleted "
            "here, and results over prompts that others typed are not listed."
        )
    else:
        _note(chosen)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        _open(chosen)
        if not offered.is_shared():
            _delete(chosen)
        partner = _partner(chosen, names) if chosen.kind in COMPARED else None
    if chosen.kind == "sweep":
        _swept(chosen, partner)
        return
    if chosen.kind == "head measures":
        _measured(chosen, partner)
    elif chosen.kind == "change of weights":
        _weighed(chosen, partner)
    else:
        words = "Studies are compared by their claims, each on its own page."
        st.caption(NOT_COMPARED.get(chosen.kind, words))
    if chosen.kind == "probes":
        _probed(chosen)
    elif chosen.kind == "scan":
        _scanned(chosen)
    elif chosen.call and partner is None:
        _python(chosen, chosen.call.replace(chosen.model, offered.without_paths(chosen.model)))


def _swept(chosen: KeptResult, partner: KeptResult | None) -> None:
    """A sweep, alone or beside another one."""
    scores = _sweep(chosen.name)
    other = None if partner is None else _sweep(partner.name)
    if scores is not None and other is not None:
        difference = side_by_side(scores, other)
        _export(chosen, scores, difference, other)
    elif scores is not None:
        left, right = st.columns([5, 7], gap="large")
        sweep_map(scores, key="map-left", title="", into=left, limit=None)
        _strongest(scores, right)
        _export(chosen, scores, scores)


def _measured(chosen: KeptResult, partner: KeptResult | None) -> None:
    """Measures of heads, alone or beside those of another run."""
    wanted = [chosen, *([] if partner is None else [partner])]
    files = [cache_dir() / f"{one.name}.safetensors" for one in wanted]
    try:
        if len({_prompts_of(path) for path in files}) > 1:
            words = "No difference: they are of other prompts, so they cannot be paired."
            st.info(words, icon=":material/difference:")
            wanted, files, partner = wanted[:1], files[:1], None
        found = [load_samples(path) for path in files]
    except InterpError as error:
        widgets.show_error(error)
        return
    rows = show_measures(found[0], found[1] if len(found) == 2 else None)
    with st.container(horizontal=True, vertical_alignment="center"):
        csv, name = (lambda: widgets.csv_text(rows)), chosen.name.replace("/", "-")
        widgets.downloads({"CSV": (csv, "csv")}, name=name)
    if partner is not None and chosen.call and partner.call:
        left, right = (
            one.call.replace(one.model, offered.without_paths(one.model)) for one in wanted
        )
        words = "name = next(iter(left))\nprint(left[name].minus(right[name]).values)"
        _python(chosen, f"{left}\nleft = found\n\n{right}\nright = found\n\n{words}")


def _weighed(chosen: KeptResult, partner: KeptResult | None) -> None:
    """A change of weights, alone or beside another one."""
    wanted = [chosen, *([] if partner is None else [partner])]
    try:
        show_trials([WeightTrial.load(cache_dir() / f"{one.name}.safetensors") for one in wanted])
    except InterpError as error:
        widgets.show_error(error)
        return
    if partner is not None:
        left, right = (
            one.call.replace(one.model, offered.without_paths(one.model)) for one in wanted
        )
        _python(chosen, f"{left}\nprint(found)\n\n{right}\nprint(found)")


def _prompts_of(path: Path) -> str:
    """The hash of the prompts; of a file that does not say it, its name."""
    return head_of(path)[1].get("provenance", {"task_hash": path.name})["task_hash"]


def _scanned(chosen: KeptResult) -> None:
    """The sentences of a scan, and its Python."""
    try:
        kept = read_scan(cache_dir() / f"{chosen.name}.json")
    except InterpError as error:
        widgets.show_error(error)
        return
    st.markdown("  \n".join(map(widgets.plain, kept["sentences"])))
    _python(chosen, chosen.call)


def _probed(chosen: KeptResult) -> None:
    """Kept probes, their table as CSV, and the Python that opens them."""
    try:
        probes = Probes.load(cache_dir() / chosen.name)
    except InterpError as error:
        widgets.show_error(error)
        return
    rows = show_probes(probes)
    with st.container(horizontal=True, vertical_alignment="center"):
        csv, name = (lambda: widgets.csv_text(rows)), chosen.name.replace("/", "-")
        widgets.downloads({"CSV": (csv, "csv")}, name=name)
    if chosen.model:
        model, kept = offered.without_paths(chosen.model), chosen.name.rpartition("/")[2]
        _python(
            chosen,
            f"import interp\n\nmodel = interp.load_model({model!r})\n"
            f"probes = interp.probing.kept_probes(model)[{kept!r}]\n"
            "print(probes.to_dataframe().to_string())",
        )


def _sweep(name: str) -> Scores | None:
    """A kept sweep; of one that cannot be read, why."""
    try:
        held = cache.result(name.rpartition("/")[2])
        return kept_scores(name) if held is None else held.scores
    except InterpError as error:
        widgets.show_error(error)
        return None


def _strongest(scores: Scores, into: Any) -> None:
    """The cells with the largest effects."""
    low, high = scores.interval()
    top = scores.top(min(12, scores.values.size), by="absolute")
    cells = [scores.index(str(one.component), one.position) for one in top]
    into.markdown(f"**The strongest** of {scores.values.size}, n = {scores.n}")
    widgets.table(
        [
            {
                "component": one.label,
                f"effect ({scores.unit_words})": one.value,
                "95 % interval": widgets.span(float(low[cell]), float(high[cell])),
            }
            for one, cell in zip(top, cells, strict=True)
        ],
        key="strongest",
        into=into,
    )


def _note(chosen: KeptResult) -> None:
    """A note that stays with the result."""
    key = f"note-{chosen.name}"

    def changed() -> None:
        try:
            note_result(chosen.name, st.session_state[key])
        except InterpError as error:
            st.session_state["note-error"] = error

    st.text_area(
        "Note",
        chosen.note,
        key=key,
        height=70,
        max_chars=LONGEST,
        placeholder="What this run was for, and what you saw. Kept beside the result.",
        on_change=changed,
    )
    if error := st.session_state.pop("note-error", None):
        widgets.show_error(error)


def _open(chosen: KeptResult) -> None:
    """The way to the page that shows the result."""
    try:
        page_of(chosen)
    except InterpError as error:
        st.caption(widgets.plain(f"No page shows it: {widgets.advice(error)}"))
        return
    if st.button("Open", type="primary", icon=":material/open_in_new:", key="runs-open"):
        st.switch_page(reopen(chosen))


def _delete(chosen: KeptResult) -> None:
    """Deleting, after a question."""

    def sure() -> None:
        try:
            delete_result(chosen.name)
        except InterpError as error:
            st.session_state["note-error"] = error
            return
        cache.forget()
        select(run=None)
        st.session_state["runs-said"] = widgets.plain(f"Deleted {chosen.name}.")

    with st.popover("Delete", icon=":material/delete:"):
        st.markdown(
            f"Delete this {chosen.kind} ({size_in_words(chosen.size)}) and its note? It cannot be "
            "undone; it can only be computed again."
        )
        st.button("Delete it", key="runs-delete", on_click=sure)


def _partner(chosen: KeptResult, names: dict[str, KeptResult]) -> KeptResult | None:
    """The result of the same kind to compare with."""
    sweeps = {n: x for n, x in names.items() if x.kind == chosen.kind and n != chosen.name}
    if not sweeps:
        return None
    if current().beside not in (None, chosen.name):
        _one(sweeps, current().beside, "beside")
    rows = {name: _row(one) for name, one in sweeps.items()}
    words = {
        name: " · ".join(filter(None, (r["model"], r["task"], r["what"], r["note"], r["when"])))
        for name, r in rows.items()
    }
    beside = widgets.picker(
        st.selectbox,
        "Compare with",
        "beside",
        shown=current().beside if current().beside in sweeps else widgets.NONE,
        options={widgets.NONE: "nothing", **words},
    )
    return sweeps.get(beside)


def _export(
    chosen: KeptResult,
    scores: Scores,
    table: Scores | ScoresDifference | None,
    other: Scores | None = None,
) -> None:
    """Files, and the Python that makes the result again."""

    def whole() -> str:
        both = [one.to_dict() for one in (scores, other) if one is not None]
        return offered.without_paths(json_text(both if other else both[0], indent=1))

    files = {"JSON": (whole, "json")}
    if table is not None:
        files = {"CSV": (lambda: table.to_dataframe().to_csv(index=False), "csv"), **files}
    with st.container(horizontal=True, vertical_alignment="center"):
        widgets.downloads(files, name=chosen.name.replace("/", "-"))
    if other is None:
        _python(chosen, offered.shown(chosen.call, scores.provenance))
        return
    calls = [offered.shown(one.provenance.call, one.provenance) for one in (scores, other)]
    _python(
        chosen,
        f"{calls[0]}\nleft = scores\n\n{calls[1]}\nright = scores\n\n"
        "print(interp.results.compare_scores(left, right).to_dataframe())",
    )


def _python(chosen: KeptResult, call: str) -> None:
    name = chosen.name.replace("/", "-")
    export.python(call, name=name, words="Python that makes these numbers again")


if __name__ == "__main__":
    _show()

"""`interp runs`: the results that are kept, as the app's page Runs lists them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli import terminal
from interp.cli.terminal import about
from interp.core.errors import InterpError

if TYPE_CHECKING:
    from interp.results.kept import KeptResult
    from interp.results.scores import Scores

Name = Annotated[
    str, typer.Argument(help="A name that the list shows, or how its last part begins.")
]
runs_app = typer.Typer(help="List, show, note, compare and delete kept results.")


@runs_app.callback(invoke_without_command=True)
def runs(
    context: typer.Context,
    words: Annotated[
        str, about("Only results with all these words in their kind, model, task or note.")
    ] = "",
    json_file: terminal.JsonFile = None,
) -> None:
    """List the kept results, newest first; show, note, compare or delete one.

    They are those of the app, of notebooks and of the command line, in the folder INTERP_CACHE and
    where INTERP_STORE says.
    """
    if context.invoked_subcommand is not None:
        return
    from interp.results.kept import kept_results

    kept = [one for one in kept_results() if one.has(words)]
    terminal.say(f"{len(kept)} kept results." if kept else "No such result is kept.")
    if kept:
        rows = [{"name": one.name, **one.row()} for one in kept]
        terminal.table(list(rows[0]), [list(row.values()) for row in rows])
    terminal.write(json_file, [asdict(one) for one in kept])


@runs_app.command(epilog="Example: interp runs show 0b5174")
def show(name: Name, top: terminal.Top = 10, json_file: terminal.JsonFile = None) -> None:
    """What a result is, the Python that makes it again, and a sweep's strongest components."""
    found = _named(name)
    facts = {"name": found.name, "place": found.place, **found.row()}
    facts["weights"] = found.model_hash[:12]
    terminal.table(["fact", "value"], [[key, value] for key, value in facts.items() if value])
    if found.call:
        terminal.say(f"\n{found.call}\n")
    if found.kind == "sweep":
        terminal.print_scores(_sweep(found), top, json_file, verbose=False)
    else:
        terminal.write(json_file, asdict(found))


@runs_app.command(epilog='Example: interp runs note 0b5174 "the one for the talk"')
def note(name: Name, text: Annotated[str, typer.Argument(help='The note; "" removes it.')]) -> None:
    """Keep a note on a result, in place of an earlier one."""
    from interp.results.kept import note_result

    found = _named(name)
    note_result(found.name, text)
    terminal.say(f"{found.name}: {'noted' if text.strip() else 'the note is removed'}.")


@runs_app.command(epilog="Example: interp runs delete 0b5174")
def delete(
    name: Name, yes: Annotated[bool, about("Do not ask before it is deleted.", "--yes")] = False
) -> None:
    """Delete a result and its note. It can only be computed again."""
    from interp.results.kept import delete_result

    found = _named(name)
    what = f"{found.name} ({found.kind}, {found.row()['size']})"
    if yes or typer.confirm(f"Delete {what}? It can only be computed again"):
        delete_result(found.name)
        terminal.say(f"Deleted {what}.")


@runs_app.command(epilog="Example: interp runs compare 0b5174 77ab09")
def compare(
    left: Name, right: Name, top: terminal.Top = 10, json_file: terminal.JsonFile = None
) -> None:
    """The difference of two sweeps of the same components, with intervals, largest first."""
    from interp.results.comparison import compare_scores

    found = compare_scores(*(_sweep(_named(name)) for name in (left, right)))
    rows = found.to_dataframe()
    terminal.say(f"left - right, in {found.left.unit_words}. {found.in_words()}")
    number = terminal.number
    terminal.table(
        ["component", "left - right", "95 % interval", "left", "right"],
        [
            [
                row["component"],
                number(row["difference"], "+"),
                terminal.spread(row["low"], row["high"], "+"),
                number(row["left"], "+"),
                number(row["right"], "+"),
            ]
            for row in rows.head(top).to_dict("records")
        ],
    )
    terminal.write(json_file, rows.to_dict("records"))


def _named(name: str) -> KeptResult:
    """The kept result of a name, or the only one whose last part begins so.

    Raises:
        InterpError: there is none, or there are several.
    """
    from interp.results.kept import find_result, kept_results

    begin = [one for one in kept_results() if one.name.rpartition("/")[2].startswith(name)]
    if len(begin) > 1:
        names = ", ".join(one.name for one in begin[:5])
        raise InterpError(f"the kept result {name!r}", f"several begin so: {names}", "write more")
    return begin[0] if begin else find_result(name)


def _sweep(found: KeptResult) -> Scores:
    """The scores of a kept sweep.

    Raises:
        InterpError: it is a result of another kind, or its file is damaged.
    """
    from interp.results.kept import kept_scores

    return kept_scores(found.name)

"""`interp cache`: what the cache folder holds, whether its files are whole, and what can go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli import terminal
from interp.cli.terminal import about

if TYPE_CHECKING:
    from interp.results.cached import CachedFile

cache_app = typer.Typer(help="List, check and prune the files in the cache folder.")


@cache_app.callback(invoke_without_command=True)
def cache(context: typer.Context, json_file: terminal.JsonFile = None) -> None:
    """List what INTERP_CACHE and INTERP_STORE hold: kinds of files, models, sizes and days.

    Left over are temporary files and locks of processes that have ended, and finished parts of runs
    that were stopped: the same call goes on from these.
    """
    if context.invoked_subcommand is not None:
        return
    from interp.core.files import cache_dir, store_root
    from interp.results.cached import cached_files

    files = cached_files()
    here = [one for one in files if one.place == "cache"]
    terminal.say(f"{len(here)} files in {cache_dir()}, {_size(here)}.")
    if store_root() != cache_dir():
        there = [one for one in files if one.place == "store"]
        terminal.say(f"{len(there)} results and unfinished runs in {store_root()}, {_size(there)}.")
    groups = defaultdict(list)
    for one in files:
        groups[one.kind.partition(",")[0], one.model, one.state].append(one)
    rows = [
        [kind, model, "" if state == "kept" else state, str(len(some)), _size(some), *_days(some)]
        for (kind, model, state), some in sorted(groups.items())
    ]
    if rows:
        terminal.table(["kind", "model", "state", "n", "size", "oldest", "newest"], rows)
    terminal.write(json_file, [asdict(one) for one in files])


@cache_app.command(epilog="Example: interp cache check")
def check(json_file: terminal.JsonFile = None) -> None:
    """Read every file that has a checksum; exit with 1 if one is damaged."""
    from interp.results.cached import cached_files, check_cache

    files = [one for one in cached_files() if one.sealed]
    with terminal.progress("checking files") as progress:
        damaged = check_cache(progress)
    terminal.say(f"{len(files)} files with a checksum, {len(damaged)} damaged.")
    _list(damaged)
    terminal.write(json_file, [asdict(one) for one in damaged])
    if damaged:
        raise typer.Exit(1)


@cache_app.command(epilog="Example: interp cache prune")
def prune(
    yes: Annotated[bool, about("Do not ask before they are removed.", "--yes")] = False,
    json_file: terminal.JsonFile = None,
) -> None:
    """Remove what is left over, and damaged files that are computed again when asked for."""
    from interp.results.cached import cached_files, check_cache, prune_cache

    with terminal.progress("checking files") as progress:
        every = [*cached_files(), *check_cache(progress)]
    removable, removed = [one for one in every if one.removable], []
    terminal.say(f"{len(removable)} to remove, {_size(removable)}.")
    _list(removable)
    if removable and (yes or typer.confirm("Remove them? Stopped runs then start anew")):
        removed = prune_cache(removable)
        terminal.say(f"Removed {len(removed)}, {_size(removed)}.")
    if kept := [one for one in every if one.state == "damaged" and not one.removable]:
        terminal.say("Damaged, but not computed again by itself; delete it if you do not need it:")
        _list(kept)
    terminal.write(json_file, [asdict(one) for one in removed])


def _list(files: Sequence[CachedFile]) -> None:
    if files:
        rows = [[one.name, one.kind, one.state, _size([one])] for one in files]
        terminal.table(["name", "kind", "state", "size"], rows)


def _size(files: Sequence[CachedFile]) -> str:
    from interp.results.kept import size_in_words

    return size_in_words(sum(one.size for one in files))


def _days(files: Sequence[CachedFile]) -> tuple[str, str]:
    """The days of the oldest and the newest file."""
    made = [one.made for one in files]
    first, last = (f"{datetime.fromtimestamp(at):%Y-%m-%d}" for at in (min(made), max(made)))
    return first, last

"""Tasks from files of Hugging Face data sets, at one commit."""

from __future__ import annotations

from dataclasses import replace

from interp.core.errors import InterpError
from interp.core.hub import dataset_file, parse_address
from interp.core.prompts import Task


def hub_task(address: str, n: int) -> Task:
    """The first n pairs of a task file at hf://owner/name@commit/file.

    Raises:
        InterpError: another form of address, a file of another kind, as
            `interp.core.hub.dataset_file`, or as `Task.from_jsonl`.
    """
    name, revision, file = parse_address(address)
    if not file.endswith((".jsonl", ".csv")):
        found = f"a {file.rpartition('.')[2]} file"
        raise InterpError(f"task {address}", found, "name a .jsonl or .csv file of the data set")
    path = dataset_file(name, file, revision)
    read = Task.from_csv if file.endswith(".csv") else Task.from_jsonl
    task = read(path, name=file.rpartition("/")[2].rpartition(".")[0]).first(n)
    return replace(task, source=f"interp.load_task({address!r}, n={len(task)})")

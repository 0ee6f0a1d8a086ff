"""`interp slices`: which groups of prompts have like states and like scores."""

from __future__ import annotations

from typing import Annotated

from interp.cli import terminal
from interp.cli.terminal import about, count


def slices(
    task: terminal.TaskName = "ioi",
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    n: terminal.CountOption = 64,
    layer: Annotated[int | None, about("Layer whose states are read; the middle one.")] = None,
    weight: Annotated[float, about("Share of the states in the distance.")] = 0.5,
    cut: Annotated[float, about("The largest mean distance in a slice.")] = 0.25,
    draws: Annotated[int, count("Times that the scores are dealt at random.")] = 200,
    keep: Annotated[int | None, about("Keep this slice as a task under a name.")] = None,
    task_seed: terminal.TaskSeed = None,
    seed: terminal.SeedOption = 0,
    option: terminal.Option = None,
    metric: terminal.MetricOption = None,
    dtype: terminal.Dtype = "float32",
    json_file: terminal.JsonFile = None,
) -> None:
    """Groups of prompts with like states and scores, beside scores dealt at random."""
    from interp.probing.slices import slice_prompts
    from interp.tasks.saved import save_task

    chosen = terminal.seed_of(task, task_seed)
    loaded = terminal.load(model, dtype)
    made = terminal.make_task(task, loaded, n, chosen, option, metric)
    with terminal.status("slicing"):
        found = slice_prompts(
            loaded, made, layer=layer, weight=weight, cut=cut, draws=draws, seed=seed
        )
    strong = int((found.p <= terminal.LEVEL).sum())
    terminal.say(
        f"{len(found.p)} slices of {len(found.of)} prompts by their states behind layer "
        f"{found.source['layer']} and {made.metric.name}. {strong} hold more of it than scores "
        f"dealt at random (p <= {terminal.LEVEL:g}, corrected for the slices)."
    )
    rows = found.to_dataframe().to_dict("records")
    head = ["slice", "n", made.metric.name, "95 % interval", "excess", "p", "overlap by state"]
    terminal.table(
        head,
        [
            [
                str(row["slice"]),
                str(row["n"]),
                terminal.number(row["score"], "+"),
                terminal.spread(row["low"], row["high"], "+"),
                terminal.number(row["excess"], "+"),
                *(terminal.number(row[name]) for name in ("p", "alone")),
            ]
            for row in rows
        ],
    )
    if keep is not None:
        kept = save_task(found.task(keep), f"slice-{keep}")
        terminal.say(f"Slice {keep} is the task {kept.name}.")
    terminal.write(json_file, rows)

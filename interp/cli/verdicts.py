"""`interp calibrate`: how often each kind of verdict is right, where the truth is planted."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from interp.cli import terminal
from interp.cli.terminal import about, count


def calibrate(
    models: Annotated[int, count("Models with planted heads.")] = 60,
    prompts: Annotated[str, about("Numbers of pairs that each model is asked with.")] = "12,32",
    seed: terminal.SeedOption = 0,
    json_file: terminal.JsonFile = None,
) -> None:
    """Ask each method which heads carry an answer, in models where it is known, and count."""
    from interp.overview.verdict_trials import calibrate_verdicts

    with terminal.progress("models") as progress:
        found = calibrate_verdicts(
            models=models,
            prompts=terminal.numbers(prompts) or (),
            seed=seed,
            progress=progress,
        )
    terminal.say(
        f"{found.models} models, {found.without} of them without a head that carries the answer. "
        "Precision: the share of the named heads that carry it. False alarms: the share of the "
        "models without such a head in which one is named."
    )
    head = ["method", "pairs", "verdict", "heads named", "precision", "95 % interval", "recall"]
    head += ["decoys named", "one is right", "false alarms", "95 % interval"]
    terminal.table(
        head,
        [
            [
                row.method,
                str(row.prompts),
                row.verdict,
                str(row.claims),
                terminal.number(row.precision.mean),
                terminal.spread(row.precision.low, row.precision.high),
                terminal.number(row.recall.mean),
                str(row.decoys),
                terminal.number(row.with_one.mean),
                terminal.number(row.false_alarms.mean),
                terminal.spread(row.false_alarms.low, row.false_alarms.high),
            ]
            for row in found.rows
        ],
    )
    terminal.write(json_file, asdict(found))

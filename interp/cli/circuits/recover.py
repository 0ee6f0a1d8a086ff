"""`interp circuit recover`: every method where the answer is known."""

from __future__ import annotations

from dataclasses import asdict
from math import isnan
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import terminal
from interp.cli.circuits import common
from interp.cli.terminal import about, count, not_negative
from interp.core.errors import InterpError

if TYPE_CHECKING:
    from interp.circuits.ground_truth.recovery import Recovery


def recover(
    names: Annotated[
        list[str] | None, typer.Argument(help="Compiled programs and toys; all by default.")
    ] = None,
    methods: Annotated[
        str | None, about("Methods, e.g. EAP,ACDC,learned-mask; all by default.")
    ] = None,
    ablation: Annotated[
        str, about("What removed edges carry: counterfactual or zero.")
    ] = "counterfactual",
    threshold: Annotated[float, not_negative("ACDC's threshold, a share of the gap.")] = 0.02,
    steps: Annotated[int, count("Training steps of the learned mask.")] = 100,
    n: terminal.CountOption = 24,
    seed: terminal.SeedOption = 0,
    budget: terminal.Budget = 1.0,
    redundant: Annotated[
        bool, about("Look for pairs of heads and MLPs that stand in for each other.")
    ] = True,
    verbose: terminal.Verbose = False,
    json_file: terminal.JsonFile = None,
) -> None:
    """Precision and recall of every method where the truth is known by brute force."""
    from interp.circuits.discovery.redundancy import redundancy
    from interp.circuits.ground_truth.known_models import known_names, load_known
    from interp.circuits.ground_truth.recovery import SEARCHES, recover_edges

    told: list[Any] = []
    for name in names or known_names():
        known = load_known(name, n=n)
        try:
            with terminal.status(f"recovering {name}"):
                found = recover_edges(
                    known.model,
                    known.task,
                    planted=known.planted,
                    methods=methods.split(",") if methods else SEARCHES,
                    ablation=ablation,  # type: ignore[arg-type]
                    threshold=threshold,
                    steps=steps,
                    seed=seed,
                    budget_gb=budget,
                )
        except InterpError as error:
            if names:
                raise
            terminal.say(f"{name}: {error}")
            told.append({"name": name, "error": str(error)})
            continue
        _print(found)
        if verbose:
            terminal.say(found.protocol)
        told.append(asdict(found) | {"redundant": []})
        if redundant:
            twofold = redundancy(
                known.model,
                known.task,
                ablation=ablation,  # type: ignore[arg-type]
                seed=seed,
                budget_gb=budget,
                resume=False,
            )
            common.print_redundancy(twofold)
            told[-1]["redundant"] = [asdict(pair) for pair in twofold.pairs]
    terminal.write(json_file, told)


def _print(found: Recovery) -> None:
    """How many methods find exactly the edges that matter, and how each does."""
    exact = [one for one in found.found if one.precision == one.recall == 1]
    terminal.say(
        f"{found.name}: {found.truth} of {found.of} edges matter; {len(exact)} of "
        f"{len(found.found)} methods find exactly these."
    )
    terminal.table(
        ["method", "edges", "precision", "recall", "AUROC", "share of gap", "note"],
        [
            [
                one.method,
                str(one.edges),
                *(
                    terminal.NONE if isnan(x) else f"{x:z.2f}"
                    for x in (one.precision, one.recall, one.auroc, one.share)
                ),
                one.note,
            ]
            for one in found.found
        ],
    )

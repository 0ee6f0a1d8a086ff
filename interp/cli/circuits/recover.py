"""`interp circuit recover`: every method where the answer is known."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from interp.cli import terminal
from interp.cli.terminal import COUNT, NOT_NEGATIVE, Budget, Count, JsonFile, Seed
from interp.core.errors import InterpError


def recover(
    names: Annotated[
        list[str] | None, typer.Argument(help="Compiled programs and toys; all by default.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="E.g. EAP,ACDC,learnt-mask; all by default.")
    ] = None,
    ablation: Annotated[str, typer.Option(help="counterfactual or zero.")] = "counterfactual",
    threshold: Annotated[
        float, typer.Option(parser=NOT_NEGATIVE, help="ACDC's, a share of the gap.")
    ] = 0.02,
    steps: Annotated[int, typer.Option(parser=COUNT, help="Of the learnt mask.")] = 100,
    n: Count = 24,
    seed: Seed = 0,
    budget: Budget = 1.0,
    redundant: Annotated[
        bool, typer.Option(help="Look for pairs of heads and MLPs that stand in for each other.")
    ] = True,
    json_file: JsonFile = None,
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
        terminal.say(str(found))
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
            terminal.say(f"  {twofold}")
            told[-1]["redundant"] = [asdict(pair) for pair in twofold.pairs]
    terminal.write(json_file, told)

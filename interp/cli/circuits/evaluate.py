"""`interp circuit evaluate`."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Annotated

from interp.cli import terminal
from interp.cli.circuits import common
from interp.cli.terminal import about, whole

if TYPE_CHECKING:
    from interp.circuits.evaluation.curve_evaluation import FaithfulnessCurves
    from interp.circuits.evaluation.evaluate import CircuitEvaluation
    from interp.core.statistics import Estimate


def evaluate(
    file: common.CircuitFile,
    task: common.TheirTask = None,
    model: common.TheirModel = None,
    n: terminal.CountOption = 32,
    ablation: common.Ablation = "counterfactual",
    level: Annotated[
        str, about("Level of the curves: edge, or node (all edges between the kept nodes).")
    ] = "edge",
    random: Annotated[int, whole("Random circuits for comparison, per circuit and kind.")] = 10,
    knockouts: Annotated[int, whole("Random subsets for completeness and minimality.")] = 10,
    draws: Annotated[int, whole("Bootstrap samples of the pairs for stability; 0: none.")] = 20,
    stable_by: Annotated[
        str,
        about(
            "Method whose ranking is tested for stability: own (the one that found the circuit), "
            "EAP, EAP-IG-inputs or clean-corrupted."
        ),
    ] = "own",
    half: common.Half = "second",
    seed: terminal.SeedOption = 0,
    metric: terminal.MetricOption = None,
    option: terminal.Option = None,
    dtype: terminal.Dtype = "float32",
    budget: terminal.Budget = 1.0,
    workers: terminal.Workers = 0,
    cluster: terminal.Cluster = None,
    verbose: terminal.Verbose = False,
    out: terminal.OutFile = None,
    json_file: terminal.JsonFile = None,
) -> None:
    """Measure faithfulness, CPR and CMD against random circuits, knock-outs and stability."""
    from interp.circuits.circuit import Circuit
    from interp.circuits.evaluation.evaluate import evaluate

    read = Circuit.load(file)
    model, task = common.home(read, model, task)
    loaded = terminal.load(model, dtype)
    chosen, other = terminal.halves(
        terminal.make_task(task, loaded, n, seed, option, metric), half, seed
    )
    with terminal.processes(workers, cluster), terminal.progress("circuits") as progress:
        found = evaluate(
            read,
            loaded,
            chosen,
            ablation=ablation,  # type: ignore[arg-type]
            reference=terminal.reference_of(ablation, chosen, other),
            level=level,  # type: ignore[arg-type]
            random=random,
            knockouts=knockouts,
            stable_by=stable_by,
            draws=draws,
            seed=seed,
            budget_gb=budget,
            workers=workers,
            progress=progress,
        )
    _print(found)
    common.note_found_on(read, chosen)
    if read.scores is None:
        terminal.say("No curve: the file has no scores.")
    if found.unstable:
        terminal.say(f"No stability: {found.unstable}.")
    if verbose:
        _print_details(found)
    if out is not None:
        terminal.say(f"written to {found.save(out)}")
    terminal.write(json_file, found.to_dict())


def _print(found: CircuitEvaluation) -> None:
    """What the circuit carries beside random ones like it, then every other measure."""
    from interp.core.statistics import FEW, range_of_draws

    itself, f = found.itself, found.itself.estimate(0)
    few = " (few)" if itself.n < FEW else ""
    random = (
        f"; random circuits of its size {common.random_words(itself, 0)}"
        if len(itself.random)
        else ""
    )
    terminal.say(
        f"The circuit, {common.size_of(found.circuit)}, carries {f.mean:z.3f} of the "
        f"{itself.metric} gap {terminal.spread(f.low, f.high)} on {itself.n} prompts{few}{random}."
    )
    rows = [
        [*_cells("faithfulness", f), *_random(itself, 0)],
        [*_cells("faithfulness, all edges of its nodes", itself.estimate(1)), *_random(itself, 1)],
    ]
    if found.signed is not None:
        rows.append([*_cells("CPR, signed ranking", found.cpr()), *_random(found.signed, None)])
        rows.append([*_cells("CMD, absolute ranking", found.cmd()), "", ""])
    if (lacks := found.completeness) is not None:
        rows.append(["incompleteness, mean", f"{lacks.incompleteness.mean():z.3f}", "", "", ""])
        rows.append([*_cells("incompleteness, worst", lacks.worst), "", ""])
    if (needs := found.minimality) is not None:
        least, middle = needs.values.min(), median(needs.values)
        name = needs.parts[int(needs.values.argmin())]
        rows.append([f"minimality, least: {name}", f"{least:z.3f}", "", "", ""])
        rows.append(["minimality, median", f"{middle:z.3f}", "", "", ""])
    if (stable := found.stability) is not None:
        low, high = range_of_draws(stable.jaccard)
        rows.append(
            [
                f"stability of {found.stable_by}, Jaccard",
                f"{stable.jaccard.mean():z.3f}",
                terminal.spread(low, high),
                f"{stable.chance:z.3f} by chance",
                "",
            ]
        )
    head = ["measure", "value", "95 % interval", "random circuits", "random circuits on paths"]
    terminal.table(head, rows)


def _print_details(found: CircuitEvaluation) -> None:
    """The curves by size, what each part adds, the protocol and how much was run."""
    if found.signed is not None and found.absolute is not None:
        sides = (("signed", found.signed), ("absolute", found.absolute))
        head = [f"{by} {x}" for by, _ in sides for x in ("edges", "f", "95 % interval")]
        assert found.signed.fractions is not None
        terminal.table(
            ["share of edges", *head, "random circuits", "random circuits on paths"],
            [
                [
                    f"{share:.2%}",
                    *(cell for _, one in sides for cell in _point(one, place)),
                    *_random(found.signed, place),
                ]
                for place, share in enumerate(found.signed.fractions)
            ],
        )
    if (needs := found.minimality) is not None:
        terminal.table(
            ["part", "minimality", "effect alone"],
            [
                [row.part, f"{row.minimality:z.3f}", f"{row.alone:+z.3f}"]
                for row in needs.to_dataframe().itertuples()
            ],
        )
    terminal.say(found.protocol)
    full, empty = found.itself.full.mean(), found.itself.empty.mean()
    terminal.say(f"{found.itself.metric}: full {full:z.3f}, empty {empty:z.3f}")
    terminal.say(
        f"{found.calls} batched runs of {found.tests} circuits, {found.forwards:z.1f} forwards"
    )


def _cells(name: str, one: Estimate) -> list[str]:
    """A measure, its value and its interval."""
    return [name, f"{one.mean:z.3f}", terminal.spread(one.low, one.high)]


def _point(one: FaithfulnessCurves, place: int) -> list[str]:
    """A point of a curve: edges, faithfulness and its interval."""
    return _cells(str(one.sizes[place]), one.estimate(place))


def _random(one: FaithfulnessCurves, circuit: int | None) -> list[str]:
    """Random circuits, then random circuits all of whose edges lie on paths."""
    return [common.random_words(one, circuit, connected=some) for some in (False, True)]

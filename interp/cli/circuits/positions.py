"""`interp circuit positions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli import terminal
from interp.cli.circuits import common
from interp.cli.terminal import about, count, not_negative
from interp.core.errors import InterpError

if TYPE_CHECKING:
    from interp.circuits.positions.narrow import NarrowedCurve
    from interp.circuits.positions.positioned_circuit import PositionedCircuit


def positions(
    file: common.CircuitFile,
    task: common.TheirTask = None,
    model: common.TheirModel = None,
    n: terminal.CountOption = 32,
    at: Annotated[
        str,
        typer.Option(
            "--positions", help="Names such as S2,last; or all, for prompts of one length."
        ),
    ] = "all",
    ablation: common.Ablation = "counterfactual",
    half: Annotated[
        str | None,
        about(
            "Which half of the pairs: first, second (by default) or all. With --narrow, the "
            "half to cut on: by default the first, on which `find` found the circuit."
        ),
    ] = None,
    seed: terminal.SeedOption = 0,
    metric: terminal.MetricOption = None,
    option: terminal.Option = None,
    dtype: terminal.Dtype = "float32",
    budget: terminal.Budget = 1.0,
    top: Annotated[int, count("How many of the strongest edges.")] = 10,
    narrow: Annotated[
        float | None,
        not_negative(
            "Instead cut the whole circuit to the tokens where its edges are worth this share "
            "of the gap, and judge the rest on the other half of the pairs."
        ),
    ] = None,
    verbose: terminal.Verbose = False,
    out: terminal.OutFile = None,
    json_file: terminal.JsonFile = None,
) -> None:
    """At which tokens the strongest edges of a circuit act: each edge is removed at one token."""
    import numpy as np

    from interp.circuits.circuit import Circuit
    from interp.circuits.positions.edge_positions import edge_positions
    from interp.circuits.positions.narrow import narrow_curve

    read = Circuit.load(file)
    model, task = common.home(read, model, task)
    loaded = terminal.load(model, dtype)
    half = half or ("second" if narrow is None else "first")
    chosen, other = terminal.halves(
        terminal.make_task(task, loaded, n, seed, option, metric), half, seed
    )
    if narrow is not None:
        if other is None:
            raise InterpError("narrowing on all pairs", "none are left to judge", "give --half")
        with terminal.progress("removing edges token by token") as progress:
            curve = narrow_curve(
                loaded,
                chosen,
                other,
                read,
                thresholds=(narrow,),
                positions=terminal.names(at),
                ablation=ablation,  # type: ignore[arg-type]
                references=(
                    terminal.reference_of(ablation, chosen, other),
                    terminal.reference_of(ablation, other, chosen),
                ),
                seed=seed,
                budget_gb=budget,
                progress=progress,
            )
        if not curve.thresholds:
            asked = f"{read.name} cut at {narrow:g}"
            raise InterpError(asked, "no path is left", "lower --narrow")
        cut = _print_cut(curve)
        common.note_found_on(read, other)
        if verbose:
            terminal.say(curve.effects.protocol)
            terminal.say(curve.judged.protocol)
        if out is not None:
            terminal.say(f"written to {cut.save(out)}")
        rows = curve.judged.to_dataframe().to_dict("records")
        told = {"protocol": curve.judged.protocol, "edges": cut.edges(), "rows": rows}
        terminal.write(json_file, told)
        return
    if out is not None:
        raise InterpError(f"writing {out}", "no circuit is cut", "give --narrow 0.01")
    edges = read.edges()
    if read.scores is not None:
        edges = [
            read.graph.label(int(w), int(r)) for w, r in common.strongest_first(read.signed, read)
        ]
    with terminal.status("removing edges token by token"):
        found = edge_positions(
            loaded,
            chosen,
            edges[:top],
            positions=terminal.names(at),
            ablation=ablation,  # type: ignore[arg-type]
            reference=terminal.reference_of(ablation, chosen, other),
            expand_kv=read.graph.expand_kv,
            neurons=read.graph.neurons,
            seed=seed,
            budget_gb=budget,
        )
    edge, position = (int(i) for i in np.unravel_index(found.values.argmax(), found.values.shape))
    best = found.estimate(found.edges[edge], found.positions[position])
    terminal.say(
        f"{found.edges[edge]} at {found.positions[position]} has the largest effect of one edge at "
        f"one token: {best.mean:+z.3f} of the gap {terminal.spread(best.low, best.high, '+')}, "
        f"n={best.n}."
    )
    head = ["edge", "all tokens", *found.positions]
    rows = zip(found.edges, found.whole, found.values, strict=True)
    terminal.table(head, [[e, *(f"{x:+z.3f}" for x in (whole, *row))] for e, whole, row in rows])
    if len(edges) > top:
        terminal.say(f"{len(edges) - top} more edges were left out; see --top.")
    if verbose:
        terminal.say(found.protocol)
    rows = found.to_dataframe().to_dict("records")
    terminal.write(json_file, {"protocol": found.protocol, "rows": rows})


def _print_cut(found: NarrowedCurve) -> PositionedCircuit:
    """The circuit cut to single positions, printed beside the uncut one."""
    judged, cut = found.judged, found.judged.circuits[1]
    both = [judged.estimate(place) for place in (0, 1)]
    terminal.say(
        f"Cut to {cut.n_edges} edges at single positions, the circuit carries "
        f"{both[1].mean:z.3f} of the {judged.metric} gap "
        f"{terminal.spread(both[1].low, both[1].high)}; with its edges at every position "
        f"{both[0].mean:z.3f} (n={judged.n})."
    )
    names = ("every position", "cut")
    terminal.table(
        ["circuit", "edges", "share", "faithfulness", "95 % interval", "random circuits"],
        [
            [
                name,
                str(one.n_edges),
                f"{one.share:.2%}",
                f"{f.mean:z.3f}",
                terminal.spread(f.low, f.high),
                common.random_words(judged, place),
            ]
            for place, (name, one, f) in enumerate(zip(names, judged.circuits, both, strict=True))
        ],
    )
    terminal.table(["edge @ position"], [[label] for label in cut.edges()])
    return cut

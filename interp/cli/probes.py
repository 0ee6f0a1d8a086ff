"""`interp probes`: what each layer knows of a sentence, and what tuning changed of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli import terminal
from interp.cli.terminal import LEVEL, about, count

if TYPE_CHECKING:
    from interp.probing.probe_suites import ProbeSuite


def probes(
    model: Annotated[
        str, typer.Argument(help="A model's name; see `interp models`.")
    ] = terminal.DEFAULT_MODEL,
    against: Annotated[
        str | None, about("Another model, such as the one it was tuned from.")
    ] = None,
    tasks: Annotated[str | None, about("Tasks such as tense,tree_depth; by default all.")] = None,
    n: Annotated[int, count("Sentences of a task.", "--n")] = 1000,
    layers: Annotated[str | None, about("Layers such as 0,10-12; all by default.")] = None,
    kind: Annotated[str, about("Kind of probe: linear or mlp.")] = "linear",
    shuffles: Annotated[int, count("Probes of permuted labels.")] = 20,
    seed: terminal.SeedOption = 0,
    dtype: terminal.Dtype = "float32",
    json_file: terminal.JsonFile = None,
) -> None:
    """What can be read of a sentence at each layer, beside permuted labels, words and outputs."""
    from interp.probing.probe_suites import probe_suite
    from interp.probing.sentence_tasks import TASKS, probe_sentences

    names = list(TASKS) if tasks is None else tasks.split(",")
    sentences = [probe_sentences(name, n=n, seed=seed) for name in names]
    loaded = terminal.load(model, dtype)
    other = None if against is None else terminal.load(against, dtype)
    with terminal.progress("probing") as progress:
        found = probe_suite(
            loaded,
            against=other,
            tasks=sentences,
            layers=terminal.numbers(layers),
            kind=kind,  # type: ignore[arg-type]
            shuffles=shuffles,
            seed=seed,
            progress=progress,
        )
    _print_suite(found)
    terminal.write(json_file, found.to_dataframe().to_dict("records"))


def _print_suite(found: ProbeSuite) -> None:
    beyond = [
        name
        for name, one in found.tasks.items()
        if (one.beyond_words.better & one.beyond_outputs.better).any()
    ]
    terminal.say(
        f"{found.model}: in {len(beyond)} of {len(found.tasks)} tasks a layer reads more than the "
        f"averaged embeddings and more than the outputs ({', '.join(beyond) or 'none'})."
    )
    if found.base:
        changed = [name for name, p in found.p_of_differences.items() if p < LEVEL]
        terminal.say(
            f"Against {found.against}, {len(changed)} tasks differ at some layer "
            f"({', '.join(changed) or 'none'}; p < {LEVEL:g}, corrected for layers and tasks)."
        )
    head = ["task", "layer", "accuracy", "95 % interval", "permuted", "p", "constant"]
    head += ["words", "outputs", *(["difference", "95 % interval"] if found.base else [])]
    rows = []
    for row in found.to_dataframe().to_dict("records"):
        cells = [row["task"], str(row["layer"]), terminal.number(row["accuracy"])]
        cells.append(terminal.spread(row["accuracy_low"], row["accuracy_high"]))
        cells += [terminal.number(row[x]) for x in ("shuffled", "p", "constant")]
        cells += [terminal.number(row[x]) for x in ("words", "outputs")]
        if found.base:
            low, high = row["difference_low"], row["difference_high"]
            cells += [terminal.number(row["difference"], "+"), terminal.spread(low, high, "+")]
        rows.append(cells)
    terminal.table(head, rows)

"""What the steps of the reuse study cost on a model that is not loaded."""

from __future__ import annotations

from interp.core.components import Component
from interp.models.language_model import LanguageModel
from interp.patching.path_spec import PathSpec, lay_out_paths
from interp.studies.reuse.settings import ReuseContext, ReuseSettings
from interp.studies.reuse.steps.circuits import step_of
from interp.studies.reuse.tasks import IOI, OBJECTS, OBJECTS_TRAINED, Entry
from interp.studies.step_cost import Costs, StepCost, part

ASSUMED = (
    "every task is done by its model, so that none is left out",
    "receivers that a stage finds lie two thirds up the layers, as do the heads that are ablated",
)


def reuse_cost(
    model: LanguageModel, settings: ReuseSettings, *, trained: bool = True
) -> list[StepCost]:
    """The cost of every step, from its own prompts; `model` needs a tokeniser, but no weights.

    trained: whether there is a model trained on Colored Objects. Its size is the model's.
    """
    context = ReuseContext(model=model, trained=model if trained else None, settings=settings)
    costs = Costs(decoder=model.require_decoder("the study of reuse"))
    tests = {e.name: _lengths(context, e, test=True) for e in context.entries}
    finds = {e.name: _lengths(context, e) for e in context.entries}
    sets = 1 + settings.sets
    found = [part("behaviour", *map(costs.plain, tests.values()))]
    found += [_circuit(context, costs, entry) for entry in context.entries]
    found.append(part("writes", *map(costs.plain, finds.values())))
    relations = {e.name: 1 + bool(e.roles.wrong) + 3 * bool(e.roles.cue) for e in context.entries}
    attention = [costs.plain(finds[name]) for name, n in relations.items() for _ in range(n)]
    found.append(part("labels", *attention))
    objects = tests[OBJECTS.name]
    rows = 2 + 4 * context.k  # two sets, and the candidates of two stages alone
    found.append(
        part(
            "repair",
            *(costs.plain(objects) for _ in range(2)),
            costs.changed(objects, rows * sets),
            left_out="fewer if candidates of two stages coincide",
        )
    )
    groups = []
    for left, right in _grouped(context):
        for entry in (left, right):
            groups += [costs.plain(tests[entry.name]), costs.plain(tests[entry.name])]
            groups.append(costs.changed(tests[entry.name], 3 * sets))
    found.append(part("groups", *groups))
    found.append(part("overlap", left_out="runs no model"))
    if trained:
        mine = [e for e in context.entries if e.group != "variant"]
        found.append(
            part(
                "reused",
                *(costs.plain(tests[OBJECTS_TRAINED.name]) for _ in range(2)),
                costs.changed(tests[OBJECTS_TRAINED.name], len(mine) * sets),
            )
        )
        found.append(part("weights", left_out="runs no model"))
    return found


def _lengths(context: ReuseContext, entry: Entry, *, test: bool = False) -> list[int]:
    """Tokens of the prompts of a task."""
    return [len(x) for x in context.task(entry, test=test).encode(context.model).clean]


def _circuit(context: ReuseContext, costs: Costs, entry: Entry) -> StepCost:
    """Three stages of path patching on the task's own pairs."""
    model, task, layer = context.model, context.task(entry), costs.found
    # All heads of a stage lie in one layer here, so one receiver of each site costs what all do.
    stages: dict[str, tuple[tuple[Component, ...], str]] = {
        "logits": ((), "last"),
        "queries": ((Component(layer, "q", 0),), "last"),
        "keys and values": ((Component(layer, "k", 0), Component(layer, "v", 0)), "all"),
    }
    parts, whole = [], task.metric.name != "logit_diff"
    for receivers, positions in stages.values():
        asked = [str(x) for x in receivers] or ["logits"]
        paths = lay_out_paths(model, task, PathSpec(receivers=asked, positions=positions))
        layers = range(layer) if receivers else None
        lengths = [len(row) for row in paths.runs.base]
        parts.append(costs.paths(lengths, paths.where, receivers, layers, read=whole))
    return part(step_of(entry), *parts)


def _grouped(context: ReuseContext) -> list[tuple[Entry, Entry]]:
    """The pairs of tasks whose heads are grouped: IOI against the other tasks of its model."""
    left = [e for e in context.entries if e.group == "ioi"]
    assert IOI in left
    return [
        (a, b)
        for a in left
        for b in context.entries
        if b.trained == a.trained and b.group in ("control", "target")
    ]

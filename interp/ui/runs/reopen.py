"""The page that shows a kept result again, and the selection that it shows it with."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from interp.circuits.evaluation.evaluate import CircuitEvaluation
from interp.circuits.positions.narrow import NarrowedCurve
from interp.core.components import SITES
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.models.toys.circuits import TOYS
from interp.probing.probes import Probes
from interp.results.direction import load_directions
from interp.results.kept import KeptResult
from interp.tasks.registry import TASKS
from interp.tasks.saved import is_saved_name
from interp.ui import VIEWS
from interp.ui.prompts.scanned import read_scan
from interp.ui.shared.prompts import EXAMPLE, AskedPrompt, keep
from interp.ui.shared.prompts import found as asked_for
from interp.ui.shared.state import CHOICES, SETUP, select
from interp.ui.studies.pages import ALL_PAGES


def reopen(found: KeptResult) -> Path:
    """Select a kept result; returns the page that shows it.

    Raises:
        InterpError: see `page_of`.
    """
    page, wanted = page_of(found)
    wanted |= _evaluated(found)
    select(**{name: value for name, value in wanted.items() if name in SETUP})
    select(**wanted)  # a change of the prompts clears what is looked at
    return page


def page_of(found: KeptResult) -> tuple[Path, dict[str, Any]]:
    """The page of a result, and the fields of the selection with which it finds it in the cache.

    Raises:
        InterpError: no page shows it, e.g. a sweep over prompts of a user's own.
    """
    if found.kind.startswith("study of"):
        return _of_study(found)
    if found.kind == "scan":
        return VIEWS / "look.py", _scan(found)
    if found.kind == "direction":
        return VIEWS / "neurons.py", _direction(found)
    if found.kind == "probes":
        return VIEWS / "directions.py", _probes(found)
    setup = {"model": found.model, "dtype": found.dtype or "float32", **_prompts(found)}
    if found.kind == "head measures":
        asked = AskedPrompt(EXAMPLE)
        keep(asked)
        return VIEWS / "heads.py", setup | {"subject": "set", "asked": asked.hash}
    if found.kind == "change of weights":
        return VIEWS / "weights.py", setup | _weights(found)
    if found.kind == "sweep":
        return VIEWS / "patching.py", setup | _sweep(found)
    return VIEWS / "circuits.py", setup | _circuit(found)


def _refused(found: KeptResult, why: str) -> InterpError:
    do = "read it here, or run its Python in a notebook"
    return InterpError(f"a page for {found.name}", why, do)


def _scan(found: KeptResult) -> dict[str, Any]:
    """The prompt, by its hash, and the reading."""
    typed = read_scan(cache_dir() / f"{found.name}.json").get("typed")
    if typed is None or asked_for(typed) is None:
        raise _refused(found, "the text of its prompt is not kept as a typed prompt")
    return {"model": found.model, "dtype": found.dtype, "asked": typed, "reading": "scan"}


def _direction(found: KeptResult) -> dict[str, Any]:
    """The neurons that write along it, on the example prompt if none is typed."""
    if not found.model:
        raise _refused(found, "it names its model by a hash, and no other result is of that model")
    name = next(iter(load_directions(cache_dir() / found.name)))
    asked = AskedPrompt(EXAMPLE)
    keep(asked)
    return {"model": found.model, "asked": asked.hash, "ranked": f"direction {name}"}


def _probes(found: KeptResult) -> dict[str, Any]:
    """The two sets of prompts that they tell apart, by their hash."""
    sets = Probes.load(cache_dir() / found.name).source.get("sets")
    if sets is None or asked_for(sets) is None:
        raise _refused(found, "they were not made by the page Directions, or their texts are gone")
    return {"model": found.model, "sets": sets}


def _of_study(found: KeptResult) -> tuple[Path, dict[str, Any]]:
    name = found.kind.removeprefix("study of ")
    for pages in ALL_PAGES:
        if pages.kind.name == name:
            folder = found.name.rpartition("/")[2]
            return VIEWS / name / "study.py", {pages.field: folder}
    raise _refused(found, f"the app has no page about {found.kind}")


def _arguments(found: KeptResult, function: str) -> tuple[list[Any], dict[str, Any]] | None:
    """The arguments of a call in the Python that repeats a result; None if there is no such call.

    An argument that is no plain value is given as its source.
    """
    for node in ast.walk(ast.parse(found.call)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"interp.{function}":
            options = {one.arg: _value(one.value) for one in node.keywords if one.arg}
            return [_value(one) for one in node.args], options
    return None


def _value(node: ast.expr) -> Any:
    """A plain value or a range of numbers; of anything else the source."""
    try:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "range":
            return tuple(range(*(ast.literal_eval(one) for one in node.args)))
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _prompts(found: KeptResult) -> dict[str, Any]:
    """The task as the pages ask for it: its name, n, seed and corruption."""
    arguments = _arguments(found, "load_task")
    if arguments is None:
        raise _refused(found, "its prompts are not a task that the app can load")
    (name, *_), options = arguments
    strange = sorted(set(options) - {"n", "seed", "corruption"})
    if strange or not (name in TASKS or name in TOYS or is_saved_name(name)):
        why = f"options {', '.join(strange)}" if strange else f"the task {name!r}"
        raise _refused(found, f"the pages do not offer {why}")
    return {"task": name, "corruption": CHOICES["corruption"][0], **options}


def _sweep(found: KeptResult) -> dict[str, Any]:
    """The controls of the patching page."""
    if (paths := _arguments(found, "path_patching")) is not None:
        given = paths[1]
        if given.get("layers") is not None or given.get("freeze_mlps"):
            raise _refused(found, "the patching page measures paths from every layer")
        wanted = {"patched": "paths", **{x: given[x] for x in ("senders", "direction")}}
        return wanted | _where(found, given) | {"receivers": tuple(given["receivers"])}
    if (patching := _arguments(found, "activation_patching")) is None:
        raise _refused(found, "the patching page makes other sweeps")
    given = patching[1]
    site, axes = given["site"], tuple(given["by"])
    numbered = SITES[site]
    shapes = {
        ("layer", numbered): "component",
        ("layer", "position"): "position",
        ("layer", numbered, "position"): "component-position",
        ("layer",): "layer",
    }
    layers, components = (tuple(given.get(name, ())) for name in ("layers", "components"))
    reference, neurons = str(given.get("reference", "")), "neuron" in axes
    some = components and components != tuple(range(components[0], components[-1] + 1))
    odd = some if neurons else layers or components
    if axes not in shapes or odd or (reference and ".without(" not in reference):
        raise _refused(found, "the patching page makes sweeps of another form")
    return {
        "patched": "components",
        "site": site,
        "by": shapes[axes],
        "direction": given["direction"],
        "source": given.get("source", "other"),
        "layers": layers,
        "neurons": (components[0], components[-1]) if components else (),
        **_where(found, given),
    }


def _where(found: KeptResult, given: dict[str, Any]) -> dict[str, Any]:
    """The positions and the unit."""
    positions = given.get("positions", "all")
    names = (positions,) if isinstance(positions, str) else tuple(positions)
    if not all(isinstance(name, str) for name in names):
        raise _refused(found, "the patching page takes positions by name")
    return {"positions": () if names == ("all",) else names, "unit": given.get("unit", "gap")}


def _weights(found: KeptResult) -> dict[str, Any]:
    """The controls of the page Weights."""
    tried = _arguments(found, "deltas.try_weights")
    shrunk, merged = (_arguments(found, f"deltas.{name}") for name in ("compress", "merge"))
    adapters = tuple(re.findall(r"load_delta\('([^']+)', model\)", found.call))
    other = re.search(r"^other = interp\.load_model\('([^']+)'", found.call, re.MULTILINE)
    if tried is None or (shrunk is None and other is None and not adapters):
        raise _refused(found, "it was made by a change of your own")
    wanted: dict[str, Any] = {"draws": tried[1]["draws"], "draw_seed": tried[1]["seed"]}
    chosen = re.search(r"^heads = (\[['LH0-9, ]*\])$", found.call, re.MULTILINE)
    wanted["carriers"] = () if chosen is None else tuple(ast.literal_eval(chosen[1]))
    if other is not None:
        return wanted | {"weights": "model", "other": other[1]}
    if shrunk is None:
        rule = None if merged is None else merged[1]["rule"]
        return wanted | {"weights": "adapters", "adapters": adapters, "merging": rule}
    share, bits = (shrunk[1].get(name) for name in ("share", "bits"))
    return wanted | {
        "weights": "compression",
        "compressed": shrunk[0][1],
        "share": None if share is None else f"{share:g}",
        "bits": bits,
    }


def _circuit(found: KeptResult) -> dict[str, Any]:
    """The controls of the circuits page."""
    if found.kind == "saved circuit":
        return {"look": "overlap", "left": found.name.rpartition("/")[2]}
    return {"look": "faithfulness"} if found.kind == "circuit evaluation" else _finder(found)


def _evaluated(found: KeptResult) -> dict[str, Any]:
    """What the file of an evaluation, or of a circuit by token, says of the circuit itself.

    How it was found, and its size; {} for another kind of result.
    """
    if found.kind == "circuit by token":
        whole = NarrowedCurve.load(cache_dir() / found.name).judged.circuits[0]
        return {"look": "tokens", "edges": whole.anywhere().n_edges}
    if found.kind != "circuit evaluation":
        return {}
    circuit = CircuitEvaluation.load(cache_dir() / found.name).circuit
    call = "" if circuit.provenance is None else circuit.provenance.call
    return _finder(replace(found, call=call)) | _circuit(found) | {"edges": circuit.n_edges}


def _finder(found: KeptResult) -> dict[str, Any]:
    """The method and its options, from the call that found the circuit."""
    for function in ("score_edges", "acdc", "learn_mask"):
        if (arguments := _arguments(found, f"circuits.{function}")) is None:
            continue
        given = arguments[1]
        searches = {"acdc": "ACDC" if given.get("absolute") else "ACDC-paper"}
        price = given.get("threshold", given.get("weight"))
        return {
            "look": "graph",
            "finder": given.get("method") or searches.get(function, "learned-mask"),
            "removed": given.get("ablation", "counterfactual"),
            "price": None if price is None else f"{price:g}",
        }
    raise _refused(found, "the circuits page finds circuits in another way")

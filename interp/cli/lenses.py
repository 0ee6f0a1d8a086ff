"""`interp lens` and `interp fit-lens`: a prompt read by a lens with its controls; fit a lens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import terminal
from interp.cli.heads import CorpusFile
from interp.cli.terminal import about, whole

if TYPE_CHECKING:
    from interp.models.language_model import LanguageModel
    from interp.probing.lens_maps import LensMaps
    from interp.probing.lens_readings import LensReading

PUBLIC = ".pt"
"""The suffix of the public file format of Jacobian lenses."""

LensFile = Annotated[
    Path | None,
    about("A lens: a file of `interp fit-lens`, or a *_jacobian_lens.pt. By default what ships."),
]


def lens(
    prompt: Annotated[str, typer.Argument(help="The prompt, in quotes.")],
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    lens: LensFile = None,
    words: Annotated[
        str | None,
        about("Words to watch such as ' Paris, Rome', each with its space; the likeliest next."),
    ] = None,
    dtype: terminal.Dtype = "float32",
    json_file: terminal.JsonFile = None,
) -> None:
    """What a lens reads at the last token of a prompt, by layer, beside its controls."""
    from interp.probing.lens_readings import read_lens

    loaded = terminal.load(model, dtype)
    maps = _lens(loaded, lens)
    watched = words.split(",") if words else [int(loaded.last_logits([prompt])[0].argmax())]
    seen = read_lens(loaded, prompt, maps, "last", words=watched)
    _print_reading(loaded, maps, seen)
    terminal.write(json_file, seen.words_to_dataframe().to_dict("records"))


def _lens(model: LanguageModel, path: Path | None) -> LensMaps:
    from interp.probing.lens_files import load_public_lens, shipped_lens
    from interp.probing.lens_maps import LensMaps

    if path is None:
        return shipped_lens(model)
    return load_public_lens(path, model) if path.suffix == PUBLIC else LensMaps.load(path)


def _print_reading(model: LanguageModel, maps: LensMaps, seen: LensReading) -> None:
    from interp.plots.style import visible

    terminal.say(f"{maps!r}, at the last token of the prompt. The likeliest token:")
    names = [*seen.readings]
    terminal.table(
        ["layer", *names],
        [
            [str(layer), *(one.top(layer)[0].label for one in seen.readings.values())]
            for layer in seen.lens.layers
        ],
    )
    for word in seen.lens.words:
        text = model.strings([word])[0] if isinstance(word, int) else word
        terminal.say(f"Probability of {visible(text)}:")
        terminal.table(
            ["layer", *names],
            [
                [
                    str(layer),
                    *(f"{x.probability(word, layer).mean:z.3f}" for x in seen.readings.values()),
                ]
                for layer in seen.lens.layers
            ],
        )
    terminal.say(
        "Identity: the logit lens. Shuffled layers: the map of another layer. Halves: fitted on "
        "half of the corpus each; where they differ, the lens is not sure."
    )


def fit_lens(
    out: Annotated[Path, typer.Argument(help="The file: *.pt is public, else *.safetensors.")],
    model: terminal.ModelName = terminal.DEFAULT_MODEL,
    kind: Annotated[str, about("jacobian, or tuned.")] = "jacobian",
    texts: CorpusFile = None,
    layers: Annotated[
        str | None, about("Layers such as 10,20; by default all but the last.")
    ] = None,
    skip: Annotated[int | None, whole("First tokens of a text that are not used.")] = None,
    steps: Annotated[int, whole("Steps of training of a tuned lens.")] = 100,
    workers: terminal.Workers = 0,
    dtype: terminal.Dtype = "float32",
) -> None:
    """Fit a lens on texts. Resumes if stopped."""
    from interp.core.corpus import shipped_passages
    from interp.core.errors import InterpError, unknown
    from interp.core.files import require_writable
    from interp.probing.jacobian_lens import fit_jacobian_lens
    from interp.probing.lens_files import save_public_lens
    from interp.probing.tuned_lens import fit_tuned_lens

    if kind not in ("jacobian", "tuned"):
        raise unknown("kind of lens", kind, ("jacobian", "tuned"))
    if out.suffix == PUBLIC and kind != "jacobian":
        found = "the public format holds Jacobian lenses"
        raise InterpError(f"a {kind} lens as {out}", found, "write *.safetensors")
    require_writable(out)
    loaded = terminal.load(model, dtype)
    corpus = shipped_passages() if texts is None else texts
    options: dict[str, Any] = {
        "layers": terminal.numbers(layers),
        "corpus": str(texts or "shipped passages"),
    }
    options |= {} if skip is None else {"skip": skip}
    with terminal.progress("fitting") as progress:
        if kind == "tuned":
            maps = fit_tuned_lens(loaded, corpus, steps=steps, progress=progress, **options)
        else:
            maps = fit_jacobian_lens(
                loaded, corpus, workers=max(1, workers), progress=progress, **options
            )
    path = save_public_lens(out, maps) if out.suffix == PUBLIC else maps.save(out)
    terminal.say(f"{maps!r} is in {path}.")
    terminal.table(
        ["layer", "halves disagree"],
        [
            [str(layer), f"{share:z.2f}"]
            for layer, share in zip(maps.layers, maps.disagreement, strict=True)
        ],
    )
    terminal.say("Beside the lens minus the identity. It falls with the root of the texts.")

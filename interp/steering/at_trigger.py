"""Vectors added to the residual stream at a trigger, and the texts with and without them.

There is no chat template here; for chats and refusal directions see `interp.steering.edits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.core.arguments import reads_arguments
from interp.core.components import within
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.runs.change import Change, Where
from interp.runs.generation import generate_each
from interp.runs.kinds import make_ablation
from interp.runs.text_runs import Generation


@dataclass(frozen=True, kw_only=True)
class TriggeredTexts(Tabled):
    """The greedy continuation of every prompt, plain and steered.

    `steered[i].fired` are the positions whose next token was taken from the steered run.
    """

    plain: list[Generation]
    steered: list[Generation]

    def to_dataframe(self) -> Any:
        """One row per prompt: both texts, and how often the trigger fired."""
        import pandas as pd

        return pd.DataFrame(
            {
                "plain": [made.text for made in self.plain],
                "steered": [made.text for made in self.steered],
                "fired": [len(made.fired) for made in self.steered],
            }
        )


@reads_arguments
def vector_steering(
    model: LanguageModel,
    vectors: Tensor,
    *,
    scale: float,
    layers: Sequence[int] | None = None,
    site: str = "resid_post",
) -> Change:
    """Vectors to be added to the residual stream, as a change of kind "steer".

        x_l <- x_l + scale * v_l / |v_l|,   a positive scale moves x along v

    For `interp.ablate`, `interp.generate` (with its trigger) and `interp.intervene`.

    Args:
        model: the model they belong to.
        vectors: one vector (d_model,) for all layers, or one row per layer, (n_layers, d_model).
        scale: length of the vector that is added.
        layers: the layers at which it is added; all by default.
        site: resid_pre, resid_mid or resid_post.

    Raises:
        InterpError: another shape, a vector that is zero or not finite, a scale that is not
            finite, no such layer, or a site that is no state of the stream.
    """
    chosen = within(layers, model.n_layers, "layer", model.name)
    if site not in ("resid_pre", "resid_mid", "resid_post"):
        raise InterpError(f"steering at {site}", "no state of the stream", "use resid_post")
    if vectors.shape not in ((model.d_model,), (model.n_layers, model.d_model)):
        raise InterpError(
            f"steering {model.name} by vectors of shape {tuple(vectors.shape)}",
            f"{model.n_layers} layers of {model.d_model} dimensions",
            "give one vector, or one for every layer",
        )
    rows = vectors.double().expand(model.n_layers, -1)[chosen]
    lengths = rows.norm(dim=1, keepdim=True)
    added = scale * rows / lengths
    if not bool(torch.isfinite(added).all()) or not bool((lengths > 0).all()):
        raise InterpError(
            f"steering by {scale:g} times vectors of lengths {lengths.flatten().tolist()}",
            "one that is zero or not finite",
            "leave that layer out",
        )
    values = {
        (layer, site): row[None, None].to(model.dtype)
        for layer, row in zip(chosen, added, strict=True)
    }
    labels = [f"L{layer}.{site}" for layer in chosen]
    return make_ablation(model, labels, "steer", values=values, name=f"steer {scale:g}")


@reads_arguments
def steer_at_trigger(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    vectors: Tensor,
    *,
    scale: float,
    max_new_tokens: int,
    layers: Sequence[int] | None = None,
    trigger: str | int | None = None,
    where: Where = 1,
    stop: Sequence[str] = (),
) -> TriggeredTexts:
    """The greedy text of every prompt, plain and with vectors added at a trigger.

    `vectors`, `scale` and `layers` are those of `vector_steering`; `trigger`, `where` and `stop`
    are those of `interp.generate`, with another default: the token after a trigger is taken from a
    run in which only the trigger's last token is steered. Without a trigger every token is taken
    from such a run.

    Raises:
        InterpError: see `vector_steering` and `interp.generate`.

    The authors' blog and code disagree on layers and steps, and their code keeps steering after the
    first trigger. Here layers and scale are explicit, and only the trigger fires.
    Source: Lee et al. 2025, arXiv 2504.14379 (TinyZero fork, `intervene.py`).
    """
    steering = vector_steering(model, vectors, scale=scale, layers=layers)
    plain, steered = generate_each(
        model,
        prompts,
        [None, steering],
        max_new_tokens=max_new_tokens,
        trigger=trigger,
        where=where,
        stop=stop,
    )
    return TriggeredTexts(plain=plain, steered=steered)

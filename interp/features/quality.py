"""How well a dictionary describes the site that it writes, on some texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import reads_arguments, texts_of
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.schema import Whole, checked
from interp.core.statistics import mean_estimate, ratio_estimate
from interp.features.activations import read_and_written
from interp.features.dictionary import Dictionary, DictionaryCard
from interp.models.language_model import LanguageModel
from interp.runs.change import Change, Edit, Tokens
from interp.runs.hooks import intervene
from interp.runs.losses import text_losses


@reads_arguments
def dictionary_card(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    dictionary: Dictionary,
    *,
    skip: int = 1,
) -> DictionaryCard:
    """Measure a dictionary on texts: variance, sparsity, loss and silent features.

        unexplained = sum |y - y_hat|^2 / sum |y - mean(y)|^2,   l0 = mean number of f != 0

    over all tokens but the first ones. The loss is that of every next token of the texts, with the
    reconstruction y_hat in the place of y at the same tokens; its control is the mean of y there.
    Intervals are over texts.

    Args:
        model: a model that the dictionary fits.
        prompts: texts of at least two tokens, which it was not trained on.
        dictionary: an SAE or a transcoder.
        skip: first tokens of each text that are left out and stay unchanged: in many models the
            first token has a stream like no other.

    Raises:
        InterpError: a dictionary that does not fit, texts with no more tokens than are left out or
            of one token, or a call inside `intervene`.

    Equals a loop over tokens, and losses under plain hooks (tests/features/test_quality.py).
    """
    skip = checked(Whole, skip, "skip")
    dictionary.require_model(model)
    model.refuse_changed("measuring a dictionary")
    texts = texts_of(prompts)
    made, true, active = [], [], []
    fired = torch.zeros(dictionary.size, dtype=torch.bool)
    with torch.no_grad():
        for tokens, read, written in read_and_written(model, texts, dictionary):
            if len(tokens) <= skip:
                found = f"a text of {len(tokens)} tokens"
                raise InterpError(f"a card that leaves out {skip}", found, "give longer texts")
            features = dictionary.encode(read)
            made.append(dictionary.decode(features, read).cpu().double())
            true.append(written.cpu().double())
            active.append((features[skip:] != 0).sum().item())
            fired |= (features[skip:] != 0).any(0).cpu()
    mean = torch.cat([y[skip:] for y in true]).mean(0)
    errors = [float((y - z)[skip:].pow(2).sum()) for y, z in zip(true, made, strict=True)]
    spread = [float((y - mean)[skip:].pow(2).sum()) for y in true]
    counts = np.array([len(y) - skip for y in true])

    def loss(values: Sequence[Tensor] | None) -> Tensor:
        if values is None:
            return text_losses(model, texts)
        with intervene(model, replaced(dictionary, values, skip)):
            return text_losses(model, texts)

    plain = loss(None)
    return DictionaryCard(
        unexplained=ratio_estimate(np.array(errors), np.array(spread)),
        l0=ratio_estimate(np.array(active, dtype=float), counts),
        loss=mean_estimate(plain),
        loss_added=mean_estimate(loss(made) - plain),
        loss_added_by_mean=mean_estimate(loss([mean.expand_as(y) for y in true]) - plain),
        dead=int((~fired).sum()),
        size=dictionary.size,
        tokens=int(counts.sum()),
        texts=len(texts),
    )


def replaced(dictionary: Dictionary, values: Sequence[Tensor], skip: int) -> Change:
    """The site written takes these values, (tokens, width) for each text, from token `skip` on."""
    lengths = torch.tensor([len(value) for value in values])
    flat, start = torch.cat(list(values)), lengths.cumsum(0) - lengths

    def value(old: Tensor, tokens: Tokens) -> Tensor:
        at = start[tokens.prompts.cpu()] + tokens.positions.cpu()
        keep = (tokens.positions < skip)[:, None]
        return torch.where(keep, old, flat[at].to(old))

    edit = Edit(name="replace", layer=dictionary.layer, site=dictionary.written, value=value)
    return Change(name=f"replace {edit.labels[0]}", edits=(edit,))

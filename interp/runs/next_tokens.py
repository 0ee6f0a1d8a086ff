"""Next-token distributions with and without changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import listed, marks_of, reads_arguments, texts_of
from interp.core.branches import Branched, reads
from interp.core.errors import InterpError
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.run_options import Progress
from interp.core.schema import Count, checked
from interp.engine.forward import Baseline, Runner
from interp.engine.memory import keep_freed_memory, says_too_little
from interp.engine.readout import CPU_TILE
from interp.engine.restart import final_hidden
from interp.engine.stopping import StopCheck, stoppable
from interp.models.language_model import LanguageModel
from interp.models.unembedding import Token, likeliest
from interp.plots.style import visible
from interp.plots.tables import Listing, Tabled
from interp.runs.change import Change, Where, changes_in
from interp.runs.changed_runs import changed_states, first_tokens
from interp.runs.stored_runs import StoredRuns, plain_runs

if TYPE_CHECKING:
    from pandas import DataFrame

ROWS = 256
"""Next tokens read at once: the unembedding is a product with as many rows."""


@dataclass(frozen=True, kw_only=True)
class NextTokens(Tabled):
    """The next token of every prompt under every change; the first row is the plain run.

    names: of the changes. tokens: the texts of the tokens asked for. probabilities: (1 + changes,
    prompts, tokens) in float64; of a text of several tokens, that all of it follows. top: (1 +
    changes, prompts) most likely token, and top_texts its text. kl: KL(plain || changed) in nats.
    """

    names: tuple[str, ...]
    tokens: tuple[str, ...]
    probabilities: np.ndarray
    top: np.ndarray
    top_texts: Mapping[int, str]
    kl: np.ndarray

    def __repr__(self) -> str:
        first, *others = zip(self.names, self.probabilities.mean(1)[:, 0], strict=True)
        shown = ", ".join(f"{name} {value:z.3f}" for name, value in [first, *others[:3]])
        return (
            f"NextTokens(n={self.top.shape[1]}, {len(others)} changes; mean probability of "
            f"{self.tokens[0]!r}: {shown})"
        )

    def to_dataframe(self) -> DataFrame:
        """One row per change and prompt: the likeliest token, KL, and the probabilities."""
        from pandas import DataFrame

        rows = [
            {"change": name, "prompt": i, "likeliest": self.top_texts[int(self.top[c, i])]}
            | {"kl": self.kl[c, i]}
            | {visible(t): p for t, p in zip(self.tokens, self.probabilities[c, i], strict=True)}
            for c, name in enumerate(self.names)
            for i in range(self.top.shape[1])
        ]
        return DataFrame(rows)

    @property
    def log_odds(self) -> np.ndarray:
        """(1 + changes, prompts) log P(first token) - log P(second token)."""
        logs = np.log(np.maximum(self.probabilities, 1e-30))
        return logs[..., 0] - logs[..., 1]


@reads_arguments
def top_tokens(model: LanguageModel, prompt: Prompt, k: int = 10) -> Listing[Token]:
    """The k likeliest next tokens of one prompt, with their probabilities.

    Any model; inside `intervene` those of the changed model.

    Raises:
        InterpError: a prompt that cannot be tokenised, or k that is no number from 1.
    """
    k = checked(Count, k, "the likeliest next tokens")
    return likeliest(model, model.last_logits([prompt])[0], k)


@reads_arguments
@says_too_little
def ablate(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    changes: Change | Sequence[Change],
    *,
    tokens: str | int | Sequence[str | int],
    where: Where = "all",
    runs: StoredRuns | None = None,
    progress: Progress | None = None,
    cancelled: StopCheck = lambda: False,
) -> NextTokens:
    """What each change does to the next token.

    Exact: every prompt is run once, and each change re-runs only the layers and tokens that can
    differ. It equals one hooked forward pass per change and prompt.

    Args:
        model: a model with a fast engine.
        prompts: texts, token ids or a task (its clean prompts); the next token of each is read.
        changes: one or several, such as those of `make_ablation`. If a change has one value per
            prompt, the values are in the order of `prompts`.
        tokens: the texts whose probabilities are reported, or ids of tokens. The probability of a
            text of several tokens is that of all of them, one after the other (teacher-forced);
            the changes are in force at its tokens too, unless they have positions of their own.
        where: how many of the last tokens are changed, or "all" (or the positions of the change).
        runs: plain runs of these prompts (`interp.runs.stored_runs.keep_runs`); by default they are
            computed.
        progress: called with (prompts done, prompts in total).
        cancelled: asked in every layer; the run stops when it returns True.

    Raises:
        InterpError: no fast engine, a change it cannot make, a component that the model lacks, no
            prompts, a prompt shorter than `where`, values for other numbers of prompts or
            positions, runs of other prompts or of fewer last tokens, texts of several tokens
            with `where` or `runs` or too long for the model, or inside `intervene`.
    """
    model.refuse_changed("ablating", "last_logits(), which sees them, and intervene() for more")
    runner = Runner(model.require_decoder("ablating sets of components"))
    tokenized = [model.tokenize(prompt) for prompt in texts_of(prompts)]
    marks, prompts = marks_of(prompts), [one.tokens for one in tokenized]
    changes = changes_in(model, changes, "ablating")
    if not prompts or (where != "all" and not 1 <= where <= min(map(len, prompts))):
        raise InterpError(
            f"ablating the last {where} tokens of {len(prompts)} prompts",
            f"lengths {sorted({len(p) for p in prompts})[:5]}",
            "give prompts at least that long",
        )
    for change in changes:
        change.require_engine("ablating")
        change.require(prompts, where)
    changes = [change.last(where).resolved(tokenized, marks) for change in changes]
    if runs is not None:
        runs.require(prompts, where if changes else 1, "ablating")
    keep_freed_memory()
    rows = 1 + len(changes)
    strings = tuple(_string(model, token) for token in listed(tokens))
    if max(map(len, strings), default=1) > 1:
        _refuse_strings(model, strings, prompts, changes, where, runs)
        prompts = [Branched.of(prompt, strings) for prompt in prompts]
    at, ids, owner = reads([strings])
    texts = np.eye(len(strings))[[text for _, text in owner]]  # (tokens read, texts)
    probabilities = np.zeros((rows, len(prompts), len(strings)))
    top, kl = np.zeros((rows, len(prompts)), dtype=np.int64), np.zeros((rows, len(prompts)))
    done = 0
    with torch.no_grad(), stoppable(cancelled):
        for block, base in plain_runs(runner, prompts) if runs is None else runs.blocks:
            plain = likely = None
            number = 0
            for hidden in _hidden_states(runner, base, changes, block):
                logits = runner.decoder.logits(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
                wide = logits if logits.dtype == torch.float64 else logits.float()
                each = wide.log_softmax(-1).unflatten(1, (len(block), -1))
                logs = each[:, :, 0]  # at the prompt's last token
                if plain is None or likely is None:
                    plain, likely = logs[0], logs[0].exp()
                here = slice(number, number + len(logs))
                found = each[:, :, at, ids].double().cpu().numpy() @ texts
                probabilities[here, block] = np.exp(found)
                top[here, block] = logs.argmax(-1).cpu().numpy()
                kl[here, block] = (plain - logs).mul_(likely).sum(-1).double().cpu().numpy()
                number = here.stop
            done += len(block)
            if progress is not None:
                progress(done, len(prompts))
    names = ("none", *(change.name for change in changes))
    likeliest_ids = np.unique(top).tolist()
    return NextTokens(
        names=names,
        tokens=tuple("".join(model.strings(string)) for string in strings),
        probabilities=probabilities,
        top=top,
        top_texts=dict(zip(likeliest_ids, model.strings(likeliest_ids), strict=True)),
        kl=kl,
    )


def _string(model: LanguageModel, text: str | int) -> tuple[int, ...]:
    """The tokens of a text inside a longer text, or an id as one token."""
    found = model.token_id(text) if isinstance(text, str) else (model.single_token(text),)
    if not found:
        raise InterpError(f"the text {text!r}", "no tokens", "give a text of at least one token")
    return found


def _refuse_strings(
    model: LanguageModel,
    strings: Sequence[tuple[int, ...]],
    prompts: Sequence[Sequence[int]],
    changes: Sequence[Change],
    where: Where,
    runs: StoredRuns | None,
) -> None:
    """Refuse texts of several tokens where they do not fit."""
    asked, longest = "the probability of a text of several tokens", max(map(len, strings))
    last = any(isinstance(edit.positions, slice) for change in changes for edit in change.edits)
    if where != "all" or last or runs is not None:
        found = f"where={where!r}, changes of the last tokens, or kept runs"
        raise InterpError(asked, found, "give texts of one token, or leave where= and runs= out")
    limit, length = model.switch or model.max_positions, max(map(len, prompts)) + longest - 1
    if limit is not None and length > limit:
        found = f"{length} tokens with the prompt, but {model.name} takes {limit}"
        raise InterpError(asked, found, "give shorter prompts")


def _hidden_states(
    runner: Runner, base: Baseline, changes: Sequence[Change], block: np.ndarray
) -> Iterator[Tensor]:
    """Final states of the plain run, then of the changes: (some, prompts of the block, d_model).

    Several changes share one pass over the weights, and several rows one unembedding.
    """
    yield final_hidden(runner, base)[None]
    rerun = [int((base.lengths - first_tokens(c, base.lengths, block)).sum()) for c in changes]
    together = max(1, CPU_TILE // max(rerun, default=1))
    for first in range(0, len(changes), together):
        hidden = changed_states(runner, base, changes[first : first + together], block)
        yield from hidden.split(max(1, ROWS // hidden.shape[1]))

"""Greedy text from a model, with a cache, and changed where a trigger fires.

The plain text goes on as if nothing had been changed, but for the tokens the changed run chose:
wherever a row's text ends in the trigger, the next token is taken from a run in which an ablation
is in force, and every other token from the plain run. This is the protocol of Lee et al. 2025
(arXiv 2504.14379; ajyl/self_verification), which recomputed the whole batch at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.ablation import Ablation, Where, decoding_changes
from interp.engine.decode import Stream
from interp.engine.forward import Runner
from interp.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.prompts import Prompt

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What followed one prompt.

    `tokens` are the new ones, the stop token left out. `stopped` says whether it ended by itself;
    `fired` are the absolute positions of the trigger's last token, wherever the next token was
    taken from the changed run.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    stopped: bool
    fired: tuple[int, ...]


def generate(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    ablation: Ablation | None = None,
    trigger: str | int | None = None,
    where: Where = 1,
    stop: Sequence[str] = (),
    rows: int = 64,
    progress: Progress | None = None,
) -> list[Generation]:
    """The greedy continuation of every prompt.

    Args:
        model: a model with a fast engine.
        prompts: texts or token tuples; values of an ablation per prompt are in their order.
        max_new_tokens: the most tokens a row gets.
        ablation: what is changed where the trigger fires.
        trigger: one token, as text such as " (" or as its id; the change is in force for the
            token after it. None with an ablation: at every step.
        where: which tokens the changed run changes: the last k up to and with the trigger, on top
            of the plain run's past, or "all" of them, the prompt included.
        stop: a row also ends once its new text contains one of these.
        rows: rows decoded together; changes nothing but time and memory.
        progress: called with (rows finished, rows in all).

    Raises:
        InterpError: no fast engine, a trigger that is not one token, values per position that do
            not fit `where`, or more tokens than the model has positions.
    """
    model.require_decoder("generating")
    model.refuse_changed("generating")
    fires = _trigger(model, trigger)
    if (trigger is not None or where != 1) and ablation is None:
        raise InterpError(f"trigger {trigger!r}", "nothing to change", "give an ablation")
    if ablation is not None and where == "all":
        if any(part.values.shape[1] > 1 for part in ablation.parts.values()):
            raise InterpError(
                "changing all tokens", "values for some positions", "give one value, or where=k"
            )
    elif ablation is not None and int(where) < 1:
        raise InterpError(f"where={where}", "no tokens", "give 1 or more, or 'all'")
    encoded = [model.tokenize(prompt).tokens for prompt in prompts]
    return in_batches(
        lambda: TextRun(model, ablation, fires, where, stop),
        encoded,
        max_new_tokens=max_new_tokens,
        rows=rows,
        progress=progress,
    )


def in_batches(
    new_run: Callable[[], TextRun],
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    rows: int,
    progress: Progress | None,
) -> list[Generation]:
    """The texts of all prompts, in their order; prompts of similar length share a batch.

    Raises:
        InterpError: more tokens than the model has positions.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    longest = max(map(len, prompts), default=0) + max_new_tokens
    made: dict[int, Generation] = {}
    with torch.no_grad():
        for begin in range(0, len(order), rows):
            run, chosen = new_run(), order[begin : begin + rows]
            if longest > run.decoder.max_positions:
                raise InterpError(
                    f"{max_new_tokens} new tokens",
                    f"{longest} in all, {run.model.name} has {run.decoder.max_positions} positions",
                    "lower max_new_tokens or shorten the prompts",
                )
            made |= run(chosen, [prompts[i] for i in chosen], max_new_tokens)
            if progress is not None:
                progress(len(made), len(order))
    return [made[i] for i in range(len(prompts))]


class TextRun:
    """One batch: the plain stream, and the changed one where it is needed.

    A subclass may put another run in the place of the plain one: see `advance`.
    """

    def __init__(
        self,
        model: LanguageModel,
        ablation: Ablation | None,
        fires: int | None,
        where: Where,
        stop: Sequence[str],
    ) -> None:
        self.model, self.decoder = model, model.require_decoder("generating")
        self.runner = Runner(self.decoder)
        self.ablation, self.fires, self.where, self.stop = ablation, fires, where, stop
        self.ends = {
            token for token in _end_tokens(model) if token is not None and token < model.d_vocab
        }

    def __call__(
        self, numbers: list[int], prompts: list[tuple[int, ...]], most: int
    ) -> dict[int, Generation]:
        """Generations by prompt number."""
        runner, device = self.runner, self.runner.device
        room = max(map(len, prompts)) + most
        texts = [list(prompt) for prompt in prompts]
        fired: list[list[int]] = [[] for _ in prompts]
        done: dict[int, Generation] = {}
        live: list[int | None] = list(range(len(prompts)))
        counts = torch.tensor([len(prompt) for prompt in prompts], device=device)
        tokens = torch.zeros(len(prompts), int(counts.max()), dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt, device=device)
        self.names = torch.tensor(numbers, device=device)
        self.first = 0 if self.ablation is None else self.ablation.first_layer
        self.plain = Stream.empty(runner, len(prompts), room)
        self.past = (
            None
            if self.ablation is None
            else runner.decoder.unembed.new_zeros(len(prompts), room, runner.decoder.d_model)
        )
        self.changed = None
        if self.ablation is not None and self.where == "all":
            self.changed = Stream.empty(runner, len(prompts), room, first=self.first)
        for step in range(most):
            last = self.advance(tokens, counts)
            logits = self.decoder.logits(self.decoder.ln_final(last))
            rows = [row for row, i in enumerate(live) if i is not None and self._due(texts[i])]
            if rows:
                logits[rows] = self._changed_logits(torch.tensor(rows, device=device))
            for row in rows:
                text = live[row]
                assert text is not None
                fired[text].append(len(texts[text]) - 1)
            for row, token in enumerate(logits.argmax(-1).tolist()):
                text = live[row]
                if text is None:
                    continue
                ended = token in self.ends
                if not ended:
                    texts[text].append(token)
                new = tuple(texts[text][len(prompts[text]) :])
                stopped = ended or self._stops(new)
                if stopped or step == most - 1:
                    live[row] = None
                    done[numbers[text]] = Generation(
                        prompt=prompts[text],
                        tokens=new,
                        text=self._text(new),
                        stopped=stopped,
                        fired=tuple(fired[text]),
                    )
            kept = [row for row, text in enumerate(live) if text is not None]
            if not kept:
                break
            if len(kept) <= 0.75 * len(live):  # dropping rows copies the others' past
                self._keep(torch.tensor(kept, device=device))
                live = [live[row] for row in kept]
            following = [0 if text is None else texts[text][-1] for text in live]
            tokens = torch.tensor(following, device=device)[:, None]
            counts = torch.ones(len(live), dtype=torch.long, device=device)
        return done

    def _due(self, text: list[int]) -> bool:
        return self.ablation is not None and (self.fires is None or text[-1] == self.fires)

    def advance(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """The plain run over new tokens; remembers what the changed run restarts from."""
        start = self.plain.lengths.clone()
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        positions = (start[:, None] + steps).clamp(max=self.decoder.max_positions - 1)
        x = self.decoder.embed(tokens.flatten(), positions.flatten()).view(*tokens.shape, -1)
        seen = {} if self.past is None else {self.first: x}
        last = self.plain.extend(x, counts, seen=seen)
        if self.past is not None:
            real = steps < counts[:, None]
            row = torch.arange(len(tokens), device=x.device)[:, None].expand_as(real)
            self.past[row[real], positions[real]] = seen[self.first][real]
        return last

    def _changed_logits(self, rows: Tensor) -> Tensor:
        """Logits after the last token of some rows, in a run with the ablation in force."""
        assert self.ablation is not None
        assert self.past is not None
        lengths = self.plain.lengths[rows]
        if self.changed is not None:
            stream, at = self.changed, rows
        else:
            back = int(self.where)
            if int(lengths.min()) < back:
                raise InterpError(f"changing the last {back} tokens", "a shorter text", "lower it")
            stream = self.plain.select(rows, first=self.first, back=back, room=int(lengths.max()))
            at = torch.arange(len(rows), device=rows.device)
        start = stream.lengths[at]
        counts = lengths - start
        columns = start[:, None] + torch.arange(int(counts.max()), device=rows.device)
        x = self.past[rows[:, None], columns.clamp(max=self.past.shape[1] - 1)]
        ends = torch.zeros(int(self.names.max()) + 1, dtype=torch.long, device=rows.device)
        ends[self.names[rows]] = lengths - 1
        last = stream.extend(
            x,
            counts,
            rows=at,
            changes=decoding_changes(self.ablation, ends),
            names=self.names[rows],
        )
        return self.decoder.logits(self.decoder.ln_final(last))

    def _keep(self, rows: Tensor) -> None:
        """Go on with some rows only."""
        self.names = self.names[rows]
        self.plain = self.plain.select(rows, first=0)
        if self.past is not None:
            self.past = self.past[rows]
        if self.changed is not None:
            self.changed = self.changed.select(rows, first=self.first)

    def _text(self, tokens: Sequence[int]) -> str:
        if self.model.tokenizer is None:
            return " ".join(f"<{token}>" for token in tokens)
        return self.model.tokenizer.decode(list(tokens))

    def _stops(self, new: Sequence[int]) -> bool:
        if not self.stop:
            return False
        text = self._text(new)
        return any(mark in text for mark in self.stop)


def _trigger(model: LanguageModel, trigger: str | int | None) -> int | None:
    if trigger is None or isinstance(trigger, int):
        return trigger
    return model.single_token(trigger, "trigger")


def _end_tokens(model: LanguageModel) -> set[int | None]:
    """Tokens that end a text, by the tokeniser and by the model's configuration."""
    ends = getattr(model.bridge.original_model.generation_config, "eos_token_id", None)
    found = set(ends) if isinstance(ends, list) else {ends}
    return found | {getattr(model.tokenizer, "eos_token_id", None)}

"""Greedy text from a model, with a cache, and changed where a trigger fires.

The plain text goes on as if nothing had been changed, but for the tokens the changed run chose:
wherever a row's text ends in the trigger, the next token is taken from a run in which an ablation
is in force, and every other token from the plain run. This is the protocol of Lee et al. 2025
(arXiv 2504.14379; ajyl/self_verification), which recomputed the whole batch at every step. Several
ablations of the same prompts share the plain run for as long as their texts are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from interp.ablation import Ablation, Where, decoding_changes
from interp.engine.decode import Stream
from interp.engine.forward import Runner
from interp.engine.memory import keep_freed_memory, says_too_little
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


@says_too_little
def generate(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    ablation: Ablation | None = None,
    trigger: str | int | None = None,
    where: Where = 1,
    stop: Sequence[str] = (),
    rows: int = 96,
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
    if (trigger is not None or where != 1) and ablation is None:
        raise InterpError(f"trigger {trigger!r}", "nothing to change", "give an ablation")
    [made] = generate_each(
        model,
        prompts,
        [ablation],
        max_new_tokens=max_new_tokens,
        trigger=trigger,
        where=where,
        stop=stop,
        rows=rows,
        progress=progress,
    )
    return made


def generate_each(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    ablations: Sequence[Ablation | None],
    *,
    max_new_tokens: int,
    trigger: str | int | None = None,
    where: Where = 1,
    stop: Sequence[str] = (),
    rows: int = 96,
    progress: Progress | None = None,
) -> list[list[Generation]]:
    """What `generate` gives for each of several ablations (None: the plain text), in their order.

    The prompts are run once, and the plain run goes on once for as long as texts are the same.

    Raises:
        InterpError: see `generate`.
    """
    model.require_decoder("generating")
    model.refuse_changed("generating")
    fires = _trigger(model, trigger)
    if where != "all" and where < 1:
        raise InterpError(f"where={where}", "no tokens", "give 1 or more, or 'all'")
    for ablation in filter(None, ablations):
        ablation.require(len(prompts), where)
    encoded = [model.tokenize(prompt).tokens for prompt in prompts]
    every = [ablation for ablation in ablations if ablation is not None]
    if fires is None and where == "all" and len(every) == len(ablations):
        return [
            in_batches(
                lambda ablation=ablation: ChangedText(model, ablation, stop),
                encoded,
                max_new_tokens=max_new_tokens,
                rows=rows,
                progress=progress,
            )[0]
            for ablation in every
        ]
    return in_batches(
        lambda: TextRun(model, ablations, fires, where, stop),
        encoded,
        max_new_tokens=max_new_tokens,
        # Half of the texts, at a guess, stay the same.
        rows=max(1, 2 * rows // (1 + len(ablations))),
        progress=progress,
    )


def in_batches(
    new_run: Callable[[], TextRun],
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    rows: int,
    progress: Progress | None,
) -> list[list[Generation]]:
    """The texts of all prompts, in their order, for each ablation of the run.

    Prompts of similar length share a batch; batches are about equally large.

    Raises:
        InterpError: no token asked for, or more than the model has positions.
    """
    if max_new_tokens < 1:
        raise InterpError(f"{max_new_tokens} new tokens", "no text", "ask for at least one")
    keep_freed_memory()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    longest = max(map(len, prompts), default=0) + max_new_tokens
    made: dict[tuple[int, int], Generation] = {}
    run, done = new_run(), 0
    with torch.no_grad():
        for some in np.array_split(np.array(order), -(-len(order) // rows)) if order else []:
            if longest > run.decoder.max_positions:
                raise InterpError(
                    f"{max_new_tokens} new tokens",
                    f"{longest} in all, {run.model.name} has {run.decoder.max_positions} positions",
                    "lower max_new_tokens or shorten the prompts",
                )
            made |= run(some.tolist(), [prompts[i] for i in some], max_new_tokens)
            done += len(some)
            if progress is not None:
                progress(done, len(order))
    ways = range(len(run.ablations))
    return [[made[i, way] for i in range(len(prompts))] for way in ways]


@dataclass(frozen=True, kw_only=True)
class _Text:
    """A text in the making: its prompt's number and length, and the ablations that wrote it."""

    number: int
    start: int
    tokens: tuple[int, ...]
    ways: tuple[int, ...]
    fired: tuple[int, ...] = ()


class TextRun:
    """One batch: the plain stream, and the changed ones where they are needed.

    A subclass may put another run in the place of the plain one: see `advance`.
    """

    def __init__(
        self,
        model: LanguageModel,
        ablations: Sequence[Ablation | None],
        fires: int | None,
        where: Where,
        stop: Sequence[str],
    ) -> None:
        self.model, self.decoder = model, model.require_decoder("generating")
        self.runner = Runner(self.decoder)
        self.ablations, self.fires, self.where, self.stop = ablations, fires, where, stop
        layers = [ablation.first_layer for ablation in ablations if ablation is not None]
        self.first = min(layers, default=None)
        self.ends = {
            token for token in _end_tokens(model) if token is not None and token < model.d_vocab
        }

    def __call__(
        self, numbers: list[int], prompts: list[tuple[int, ...]], most: int
    ) -> dict[tuple[int, int], Generation]:
        """Generations by prompt number and ablation."""
        ways = tuple(range(len(self.ablations)))
        rows: list[_Text | None] = [
            _Text(number=number, start=len(prompt), tokens=prompt, ways=ways)
            for number, prompt in zip(numbers, prompts, strict=True)
        ]
        tokens, counts = self._start(numbers, prompts, most)
        done: dict[tuple[int, int], Generation] = {}
        for step in range(most):
            last = self.advance(tokens, counts)
            after: list[tuple[int, _Text]] = []
            for row, text, token in self._next(rows, last):
                text, stopped = self._longer(text, token)
                if stopped or step == most - 1:
                    done |= {
                        (text.number, way): self._made(text, way, stopped) for way in text.ways
                    }
                else:
                    after.append((row, text))
            if not after:
                break
            parents = [row for row, _ in after]
            # Dropping rows copies the others' past; so does a text that became two.
            if len(after) <= 0.9 * len(rows) or len(set(parents)) < len(parents):
                self._keep(torch.tensor(parents, device=self.runner.device))
                rows = [text for _, text in after]
            else:
                rows = [None] * len(rows)
                for row, text in after:
                    rows[row] = text
            following = [0 if text is None else text.tokens[-1] for text in rows]
            tokens = torch.tensor(following, device=self.runner.device)[:, None]
            counts = torch.ones_like(tokens[:, 0])
        return done

    def _start(
        self, numbers: list[int], prompts: list[tuple[int, ...]], most: int
    ) -> tuple[Tensor, Tensor]:
        """Empty streams, and the prompts as padded tokens with their lengths."""
        runner, device, n = self.runner, self.runner.device, len(prompts)
        room = max(map(len, prompts)) + most
        counts = torch.tensor([len(prompt) for prompt in prompts], device=device)
        tokens = torch.zeros(n, int(counts.max()), dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt, device=device)
        self.names = torch.tensor(numbers, device=device)
        self.plain = Stream.empty(runner, n, room)
        self.past, self.changed = None, {}
        if self.first is not None:
            self.past = self.decoder.unembed.new_zeros(n, room, self.decoder.d_model)
            if self.where == "all":
                self.changed = {
                    way: Stream.empty(runner, n, room, first=self.first)
                    for way, ablation in enumerate(self.ablations)
                    if ablation is not None
                }
        return tokens, counts

    def _next(self, rows: list[_Text | None], last: Tensor) -> Iterator[tuple[int, _Text, int]]:
        """(row, text, next token) of every live row; several where ablations part there."""
        plain = self.decoder.logits(self.decoder.ln_final(last)).argmax(-1).tolist()
        due = {row: text for row, text in enumerate(rows) if text is not None and self._due(text)}
        changed: dict[tuple[int, int], int] = {}
        for way, ablation in enumerate(self.ablations):
            mine = [row for row, text in due.items() if way in text.ways]
            if ablation is not None and mine:
                at = torch.tensor(mine, device=last.device)
                logits = self._changed_logits(at, way, ablation)
                changed |= {
                    (row, way): token
                    for row, token in zip(mine, logits.argmax(-1).tolist(), strict=True)
                }
        for row, text in enumerate(rows):
            if text is None:
                continue
            if row in due:
                text = replace(text, fired=(*text.fired, len(text.tokens) - 1))
            parted: dict[int, list[int]] = {}
            for way in text.ways:
                token = changed[row, way] if (row, way) in changed else plain[row]
                parted.setdefault(token, []).append(way)
            for token, ways in parted.items():
                yield row, replace(text, ways=tuple(ways)), token

    def _longer(self, text: _Text, token: int) -> tuple[_Text, bool]:
        """The text with one token more, and whether that ends it."""
        if token in self.ends:
            return text, True
        text = replace(text, tokens=(*text.tokens, token))
        return text, self._stops(text.tokens[text.start :])

    def _made(self, text: _Text, way: int, stopped: bool) -> Generation:
        new = text.tokens[text.start :]
        return Generation(
            prompt=text.tokens[: text.start],
            tokens=new,
            text=self._text(new),
            stopped=stopped,
            fired=() if self.ablations[way] is None else text.fired,
        )

    def _due(self, text: _Text) -> bool:
        return self.first is not None and self.fires in (None, text.tokens[-1])

    def advance(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """The plain run over new tokens; remembers what the changed run restarts from."""
        start = self.plain.lengths.clone()
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        positions = (start[:, None] + steps).clamp(max=self.decoder.max_positions - 1)
        x = self.decoder.embed(tokens.flatten(), positions.flatten()).view(*tokens.shape, -1)
        seen = {} if self.first is None else {self.first: x}
        last = self.plain.extend(x, counts, seen=seen)
        if self.past is not None and self.first is not None:
            real = steps < counts[:, None]
            row = torch.arange(len(tokens), device=x.device)[:, None].expand_as(real)
            self.past[row[real], positions[real]] = seen[self.first][real]
        return last

    def _changed_logits(self, rows: Tensor, way: int, ablation: Ablation) -> Tensor:
        """Logits after the last token of some rows, in a run with an ablation in force."""
        assert self.past is not None
        assert self.first is not None
        lengths = self.plain.lengths[rows]
        if way in self.changed:
            stream, at = self.changed[way], rows
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
            changes=decoding_changes(ablation, ends),
            names=self.names[rows],
        )
        return self.decoder.logits(self.decoder.ln_final(last))

    def _keep(self, rows: Tensor) -> None:
        """Go on with some rows only."""
        self.names = self.names[rows]
        self.plain = self.plain.select(rows, first=0)
        if self.past is not None:
            self.past = self.past[rows]
        for way, stream in self.changed.items():
            self.changed[way] = stream.select(rows, first=stream.first)

    def _text(self, tokens: Sequence[int]) -> str:
        if self.model.tokenizer is None:
            return " ".join(f"<{token}>" for token in tokens)
        return self.model.tokenizer.decode(list(tokens))

    def _stops(self, new: Sequence[int]) -> bool:
        if not self.stop:
            return False
        text = self._text(new)
        return any(mark in text for mark in self.stop)


class ChangedText(TextRun):
    """Texts whose every token comes from the changed run: it stands in the plain one's place."""

    def __init__(self, model: LanguageModel, ablation: Ablation, stop: Sequence[str]) -> None:
        super().__init__(model, (None,), None, 1, stop)
        self.ablation = ablation

    def advance(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """The changed run over new tokens."""
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        positions = self.plain.lengths[:, None] + steps
        positions = positions.clamp(max=self.decoder.max_positions - 1)
        x = self.decoder.embed(tokens.flatten(), positions.flatten()).view(*tokens.shape, -1)
        # One value for all positions, so that it does not matter where a row ends.
        ends = torch.zeros(int(self.names.max()) + 1, dtype=torch.long, device=tokens.device)
        changes = decoding_changes(self.ablation, ends)
        return self.plain.extend(x, counts, changes=changes, names=self.names)

    def _due(self, text: _Text) -> bool:
        return True

    def _made(self, text: _Text, way: int, stopped: bool) -> Generation:
        return replace(super()._made(text, way, stopped), fired=text.fired)


def _trigger(model: LanguageModel, trigger: str | int | None) -> int | None:
    if trigger is None or isinstance(trigger, int):
        return trigger
    return model.single_token(trigger, "trigger")


def _end_tokens(model: LanguageModel) -> set[int | None]:
    """Tokens that end a text, by the tokeniser and by the model's configuration."""
    ends = getattr(model.bridge.original_model.generation_config, "eos_token_id", None)
    found = set(ends) if isinstance(ends, list) else {ends}
    return found | {getattr(model.tokenizer, "eos_token_id", None)}

"""Answers in context, for every kind of tokeniser: bytes, space tokens, BOS and EOS."""

import pytest
import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interp.core.continuations import answer_token, follows, piece_tokens
from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.models.loading import wrap
from interp.tasks.registry import TASKS, load_task

SPECIAL = ["<unk>", "<s>", "</s>"]


def corpus():
    """The prompts of the shipped tasks with their answers, each word often enough to be a token."""
    for name in TASKS:
        for pair in load_task(name, n=400).pairs:
            for answer in (*pair.answers, *pair.wrong):
                yield f"{pair.clean}{answer}"
    yield from (f"n{number:02d}" for number in range(100) for _ in range(300))


def byte_level(split_digits):
    """As GPT-2's, or with every digit a token as SmolLM's."""
    one = Tokenizer(models.BPE())
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    one.pre_tokenizer = pre_tokenizers.Sequence([digits, byte]) if split_digits else byte
    one.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return one, BpeTrainer(vocab_size=4000, special_tokens=SPECIAL, initial_alphabet=alphabet)


def prefix_space(metaspace):
    """As Llama-2's and TinyLlama's (a normaliser puts the space token first), or by Metaspace."""
    one = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    digits = pre_tokenizers.Digits(individual_digits=True)
    if metaspace:
        space = pre_tokenizers.Metaspace(prepend_scheme="first")
        one.pre_tokenizer = pre_tokenizers.Sequence([space, digits])
    else:
        one.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        pattern = tokenizers.Regex("▁?[^▁0-9\n]+|▁|[0-9]|\n")
        one.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    one.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    return one, BpeTrainer(vocab_size=4000, special_tokens=SPECIAL + fallback)


KINDS = {
    "gpt2": (byte_level(False), "{}"),
    "smollm": (byte_level(True), "{}"),
    "llama2": (prefix_space(False), "<s> {}"),
    "llama2-eos": (prefix_space(False), "<s> {} </s>"),
    "gpt2-eos": (byte_level(True), "{} </s>"),
    "mistral": (prefix_space(True), "<s> {}"),
}


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    """A tiny model with a tokeniser of each kind."""
    (made, trainer), template = KINDS[request.param]
    made.train_from_iterator([text for text in corpus() for _ in range(2)], trainer)
    pieces = template.format("$A").split()
    special = [(text, made.token_to_id(text)) for text in SPECIAL[1:]]
    made.post_processor = processors.TemplateProcessing(
        single=" ".join(pieces), pair=None, special_tokens=special
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return wrap(LlamaForCausalLM(config), tokenizer, name=request.param, check=False)


@pytest.mark.parametrize("name", TASKS)
def test_the_shipped_tasks_find_their_words(model, name):
    task = load_task(name, model, n=12)
    encoded = task.encode(model, strings=True)
    strings = encoded.targets.strings
    for i, (pair, prompt) in enumerate(zip(task.pairs, encoded.prompts, strict=True)):
        first = int(encoded.targets.answers[i, 0])
        tokens = (first,) if strings is None else strings[i][first]
        text = model.tokenizer.decode(
            [*prompt.tokens, *tokens],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        assert text.strip() == (pair.clean + pair.answers[0]).strip()
    for position in task.position_names:
        assert len(encoded.positions(position)) == len(task)


def test_an_answer_is_the_token_that_follows(model):
    prompt = "The capital of France is"
    paris = answer_token(model, prompt, " Paris", "it")
    assert follows(model, prompt, " Paris") == (paris,)
    alone = model.tokenizer(f"{prompt} Paris", add_special_tokens=False)["input_ids"]
    assert alone[-1] == paris
    assert model.tokenize(f"{prompt} Paris").tokens == (*model.tokenize(prompt).tokens, paris)
    assert model.single_token(" Paris") == paris
    assert answer_token(model, model.tokenize(prompt).tokens, " Paris", "it") == paris
    assert answer_token(model, prompt, paris, "it") == paris


def test_a_prompt_that_fills_the_model_has_answers(model):
    prompt = "The capital of France is"
    model.max_positions = len(model.tokenize(prompt).tokens)
    try:
        assert answer_token(model, prompt, " Paris", "it") == model.single_token(" Paris")
    finally:
        model.max_positions = None


def test_a_number_goes_on_with_the_number_before_it(model):
    digit = answer_token(model, "from the year 1749 to the year 17", "5", "it")
    assert model.tokenizer.decode([digit]) == "5"
    assert answer_token(model, "A:\n", "5", "it") == digit


def test_a_word_without_its_space_has_to_be_clear(model):
    """Taken as the word where only that is a token, refused where both are."""
    prompt = "The capital of France is"
    attached = follows(model, prompt, "Paris")
    if attached is not None and len(attached) == 1:
        with pytest.raises(InterpError, match="with a leading space .* write ' Paris'.* by its id"):
            answer_token(model, prompt, "Paris", "it")
    else:
        assert answer_token(model, prompt, "Paris", "it") == model.single_token(" Paris")


@pytest.mark.parametrize("end", [*")]}…%”’\"'", "."])
def test_a_word_behind_a_mark_has_to_be_clear(model, end):
    """What ends a word or a clause does not say whether the next word has its space."""
    prompt = f"The capital of France{end}"
    both = [follows(model, prompt, text) for text in ("is", " is")]
    both = [tokens[0] for tokens in both if tokens is not None and len(tokens) == 1]
    assert len(both) in (1, 2)
    if len(both) == 1:
        assert answer_token(model, prompt, "is", "it") == both[0]
    else:
        with pytest.raises(InterpError, match=rf"leading space \({both[1]}\) .* \({both[0]}\)"):
            answer_token(model, prompt, "is", "it")


@pytest.mark.parametrize(
    ("prompt", "answer", "match"),
    [
        ("The capital of France is", " Paris Rome", "2 tokens in .*Rome"),
        ("The capital of France is", "", "0 tokens"),
        ("The capital of France is", 10**9, "has tokens 0 to"),
        ("The capital of France is", True, "has tokens 0 to"),
        ("The capital of France is ", "Paris", "without a space"),
    ],
)
def test_answers_that_are_refused(model, prompt, answer, match):
    with pytest.raises(InterpError, match=match):
        answer_token(model, prompt, answer, "it")


def test_a_piece_of_text_is_the_same_tokens_as_inside_a_text(model):
    whole = model.tokenizer("It is Mary and John", add_special_tokens=False)["input_ids"]
    split = [piece_tokens(model.tokenizer, text) for text in (" Mary", " and", " John")]
    assert tuple(whole[-3:]) == sum(split, ())


def test_a_pair_takes_one_answer_as_text(model):
    pair = PromptPair(clean="The capital of France is", answers=" Paris", wrong=" Rome")
    assert pair.answers == (" Paris",)
    Task(name="one", pairs=(pair,)).encode(model)

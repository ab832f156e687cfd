"""The chat format: transformers renders and masks it alike; labels lie on the assistant's words."""

import doctest
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import Bigrams, Words
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from course_lib import chat
from course_lib.chat import (
    answered,
    course_format,
    encode_chat,
    end_tokens,
    own_format,
    reply,
    turns,
)
from course_lib.completion import token_counter
from course_lib.ops import IGNORE_INDEX
from course_lib.world.tokenizer import (
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    save_tokenizer,
    train_tokenizer,
)

GENERATION = CHAT_TEMPLATE.replace(
    "{{ '<|assistant|> ' + message['content'] + '<|end|>' }}",
    "{{ '<|assistant|>' }}{% generation %}{{ ' ' + message['content'] + '<|end|>' }}"
    "{% endgeneration %}",
)
"""The template with the marks by which transformers finds the assistant's tokens."""
contents = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), max_size=12)
chats = st.lists(contents, min_size=2, max_size=6).map(lambda texts: turns(*texts))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The course's tokenizer, trained on next to nothing, written and read as the shipped one."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(["The dog sees two dogs."], 400), folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def worded(words: str) -> PreTrainedTokenizerFast:
    """A word a token; the special tokens come first."""
    vocab = {w: i for i, w in enumerate([*SPECIAL_TOKENS, *words.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|pad|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>",
        pad_token="<|pad|>", additional_special_tokens=["<|user|>", "<|assistant|>"])  # fmt: skip


def test_the_docstrings_show_what_comes_out():
    globs = {"tokenizer": worded("plural: dog dogs")}
    result = doctest.testmod(chat, extraglobs=globs)
    assert result.attempted == 3 and not result.failed


# --- the text -----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True)
@given(chats, st.booleans())
def test_transformers_renders_the_same_text(tokenizer, messages, prompt):
    theirs = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompt
    )
    assert course_format(messages, prompt) == theirs == own_format(tokenizer)(messages, prompt)


def test_a_chat_by_hand():
    assert course_format(turns("dog", "dogs", "cat")) == (
        "<|user|> dog<|assistant|> dogs<|end|><|user|> cat"
    )
    assert course_format([], add_generation_prompt=True) == "<|assistant|>"


def test_other_roles_and_missing_templates_are_refused():
    with pytest.raises(ValueError, match="Roles are user and assistant, got 'system'"):
        course_format([{"role": "system", "content": "Be brief."}])
    with pytest.raises(ValueError, match="no chat_template"):
        own_format(SimpleNamespace(chat_template=None))


# --- tokens and labels --------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(chats, st.booleans())
def test_ids_and_labels_are_those_of_transformers(tokenizer, messages, own):
    """transformers marks the tokens of the ``generation`` parts of a template."""
    theirs = tokenizer.apply_chat_template(
        messages, chat_template=GENERATION, return_dict=True, return_assistant_tokens_mask=True
    )
    ours = encode_chat(tokenizer, messages, own_format(tokenizer) if own else course_format)
    assert ours["input_ids"] == theirs["input_ids"]
    mask = [int(label != IGNORE_INDEX) for label in ours["labels"]]
    assert mask == theirs["assistant_masks"]
    assert [i for i, m in zip(ours["input_ids"], mask, strict=True) if m] == [
        label for label in ours["labels"] if label != IGNORE_INDEX
    ]


def test_labels_of_two_turns_by_hand():
    """a 4, b 5, c 6, d 7: the user's a and c are ignored, the answers and both ends are not; the
    tokens that open the assistant's turn are given, not learnt."""
    row = encode_chat(worded("a b c d"), turns("a", "b", "c", "d"))
    assert row["input_ids"] == [2, 4, 3, 5, 0, 2, 6, 3, 7, 0]
    assert row["labels"] == [-100, -100, -100, 5, 0, -100, -100, -100, 7, 0]


def test_nothing_to_learn_and_rewriting_templates_are_refused():
    """A template that shortens earlier answers, as those of some reasoning models do."""
    tokenizer = worded("a b c d")
    with pytest.raises(ValueError, match="nothing to learn from"):
        encode_chat(tokenizer, turns("a"))

    def forgetful(messages, add_generation_prompt=False):
        last = len(messages) - 1
        return course_format([
            m if m["role"] == "user" or i == last else {**m, "content": "..."}
            for i, m in enumerate(messages)
        ], add_generation_prompt)  # fmt: skip

    with pytest.raises(ValueError, match="rewrites earlier turns.*last_only=True"):
        encode_chat(tokenizer, turns("a", "b", "c", "d"), forgetful)
    last = encode_chat(tokenizer, turns("a", "b", "c", "d"), forgetful, last_only=True)
    assert last["input_ids"] == [2, 4, 3, 1, 0, 2, 6, 3, 7, 0], "1 is ..., which is no word"
    assert last["labels"] == [-100] * 8 + [7, 0]
    assert encode_chat(tokenizer, turns("a", "b"), forgetful)["labels"][-2:] == [5, 0]


def test_a_turn_that_opens_otherwise_once_it_is_answered():
    """The prompt ends in "think", the answered turn has none: not the fault of earlier turns, for
    there are none."""

    def form(messages, add_generation_prompt=False):
        return course_format(messages, add_generation_prompt) + " think" * add_generation_prompt

    with pytest.raises(ValueError, match=r"message 1, which ends in '.*think', is not .* opens an"):
        encode_chat(worded("a b think"), turns("a", "b"), form)


# --- borders that the tokenizer merges ----------------------------------------------------------


def letters(merge: tuple[str, str], metaspace: bool = False) -> PreTrainedTokenizerFast:
    """A letter a token, and one merge of two; with ``metaspace`` every text begins with a space."""
    vocab = {c: i for i, c in enumerate([*"Q:A.adogcxy ▁", "".join(merge)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[merge]))
    tokenizer.decoder = decoders.Fuse()
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def plain(messages, add_generation_prompt=False):
    """Questions and answers without a special token: Q:a A: d."""
    text = "".join(f"Q:{m['content']} " if m["role"] == "user" else f"A: {m['content']}."
                   for m in messages)  # fmt: skip
    return text + "A: " * add_generation_prompt


def test_a_prompt_and_an_answer_that_merge_are_tokenised_apart():
    """ "Q:a A: dog." has the token " d" over the border: the model has read the prompt with " " at
    its end, and writes d o g . itself. The bug: an error about earlier turns."""
    tokenizer = letters((" ", "d"))
    row = encode_chat(tokenizer, turns("a", "dog"), plain)
    prompt = tokenizer("Q:a A: ", add_special_tokens=False)["input_ids"]
    answer = tokenizer.convert_tokens_to_ids(list("dog."))
    assert row == {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
    two = encode_chat(tokenizer, turns("a", "dog", "c", "do"), plain)
    spoken = [i for i in two["labels"] if i != IGNORE_INDEX]
    assert tokenizer.convert_ids_to_tokens(spoken) == list("dog.do.")
    assert tokenizer.decode(two["input_ids"]) == "Q:a A: dog.Q:c A: do."


def test_a_border_that_cannot_be_kept_is_named_as_such():
    """x and y merge over the border; tokenised apart, y would get a space that the text has not."""
    tokenizer = letters(("x", "y"), metaspace=True)

    def form(messages, add_generation_prompt=False):
        return plain(messages, add_generation_prompt).replace("A: ", "A:x")

    with pytest.raises(ValueError, match="merges the end of a prompt with the start of its answer"):
        encode_chat(tokenizer, turns("a", "y"), form)
    assert encode_chat(tokenizer, turns("a", "d"), form)["labels"][-2:] != [-100, -100]


# --- replies ------------------------------------------------------------------------------------


def speaker(follows: dict[str, str], words: str = "The answer is 5 6 .") -> tuple:
    """A model that always says the word that follows."""
    tokenizer = Words(f"<|end|> <|user|> <|assistant|> hi you {words}", end="<|end|>")
    original = tokenizer.__class__.__call__

    class Spaced(Words):
        def __call__(self, text, add_special_tokens=True):
            for token in SPECIAL_TOKENS:
                text = text.replace(token, f" {token} ")
            return original(self, text, add_special_tokens)

    tokenizer.__class__ = Spaced
    return Bigrams(tokenizer, {a: {b: 1.0} for a, b in follows.items()}), tokenizer


def test_a_reply_ends_where_the_assistant_ends_it():
    model, tokenizer = speaker({"<|assistant|>": "you", "you": "5", "5": "<|end|>"})
    assert reply(model, tokenizer, ["hi", "hi hi"], 6) == ["you 5", "you 5"]
    assert reply(model, tokenizer, ["hi"], 1) == ["you"]


def test_a_sampled_reply_takes_the_generator():
    model, tokenizer = speaker({"5": "<|end|>", "6": "<|end|>"})
    with torch.no_grad():
        model.table[tokenizer.ids["<|assistant|>"]] = -60
        model.table[tokenizer.ids["<|assistant|>"], [tokenizer.ids["5"], tokenizer.ids["6"]]] = 0
    said = [reply(model, tokenizer, ["hi"] * 20, 3, temperature=1.0,
                  generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]  # fmt: skip
    assert said[0] == said[1] != said[2] and set(said[0]) == {"5", "6"}


def test_the_answer_counts_not_the_steps():
    """The model says "you The answer is 5": right where 5 is asked, with whatever steps."""
    chain = "<|assistant|> you The answer is 5 <|end|>".split()
    model, tokenizer = speaker(dict(zip(chain, chain[1:], strict=False)))
    pairs = [("hi", "hi. The answer is 5."), ("hi", "5"), ("hi", "The answer is 6."), ("hi", "you")]
    assert answered(model, tokenizer, pairs, 8) == [True, True, False, False]


# --- other models' chats ------------------------------------------------------------------------

CHATML = (
    "<s>{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def chatml(words: str) -> PreTrainedTokenizerFast:
    """A start token that the tokenizer adds and the template writes too; turns end in <|im_end|>,
    texts in <|endoftext|>: ids 1, 3 and 0."""
    special = ["<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>"]
    vocab = {w: i for i, w in enumerate([*special, "user", "assistant", *words.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>",
        eos_token="<|endoftext|>", additional_special_tokens=special[2:])  # fmt: skip
    wrapped.chat_template = CHATML
    return wrapped


def follower(tokenizer, follows: dict[str, str]) -> Bigrams:
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    names = SimpleNamespace(words=words, ids={w: i for i, w in enumerate(words)})
    return Bigrams(names, {a: {b: 1.0} for a, b in follows.items()})


def test_a_chat_has_one_start_token_wherever_it_is_read():
    """In training, in a reply and where tokens are counted. The bug: 1 1 2 4 6 ... and one more."""
    tokenizer = chatml("hi yes")
    form = own_format(tokenizer)
    row = encode_chat(tokenizer, turns("hi", "yes"), form)
    assert row["input_ids"] == [1, 2, 4, 6, 3, 2, 5, 7, 3]
    assert row["labels"] == [-100] * 7 + [7, 3]
    read = []
    model = follower(tokenizer, {"assistant": "yes", "yes": "<|im_end|>"})
    model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].tolist()))
    assert reply(model, tokenizer, ["hi"], 6, form) == ["yes"]
    assert read[0] == [row["input_ids"][:7]]
    text = form(turns("hi"), True)
    assert token_counter(tokenizer, add_special_tokens=False)(text) == 7
    assert token_counter(tokenizer)("hi") == 2


def test_a_turn_that_ends_in_another_token_than_texts_do_not_run_on():
    """After <|im_end|> the model would go on with a user's turn for ever; the end of a text ends
    a turn as well."""
    tokenizer = chatml("hi yes no")
    form = own_format(tokenizer)
    assert end_tokens(tokenizer, form) == (0, 3)
    talker = follower(tokenizer, {"assistant": "yes", "yes": "no", "no": "<|im_end|>",
                                  "<|im_end|>": "user", "user": "hi", "hi": "hi"})  # fmt: skip
    read = []
    talker.register_forward_hook(lambda *args: read.append(1))
    assert reply(talker, tokenizer, ["hi", "hi hi"], 9, form) == ["yes no", "yes no"]
    assert len(read) == 3
    ends = follower(tokenizer, {"assistant": "yes", "yes": "<|endoftext|>", "<|endoftext|>": "no"})
    assert reply(ends, tokenizer, ["hi"], 9, form) == ["yes"]
    assert reply(talker, tokenizer, ["hi"], 3, form, eos_token_id=7) == [""]


def test_the_end_tokens_of_other_formats(tokenizer):
    """The course's format ends in the tokenizer's own; one without special tokens adds none."""
    assert end_tokens(tokenizer) == end_tokens(tokenizer, own_format(tokenizer)) == (0,)
    assert end_tokens(tokenizer, plain) == (0,)
    assert end_tokens(letters((" ", "d")), plain) == ()

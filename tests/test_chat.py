"""The chat format: transformers renders and masks it alike; labels lie on the assistant's words."""

import doctest
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import Bigrams, Words
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from course_lib import chat
from course_lib.chat import answered, course_format, encode_chat, own_format, reply, turns
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

    with pytest.raises(ValueError, match="rewrites earlier turns"):
        encode_chat(tokenizer, turns("a", "b", "c", "d"), forgetful)
    assert encode_chat(tokenizer, turns("a", "b"), forgetful)["labels"][-2:] == [5, 0]


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

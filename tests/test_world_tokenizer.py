"""The tokenizer: digits alone, words whole, text back to the letter."""

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.world import lexicon
from course_lib.world.corpus import documents
from course_lib.world.tokenizer import FILES, SPECIAL_TOKENS, save_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(d.text for d in islice(documents(0), 4000)), folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def test_special_tokens_come_first(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert tokenizer.eos_token_id == 0 and tokenizer.pad_token_id == 1
    assert len(tokenizer) == 2048


def test_every_digit_is_its_own_token(tokenizer):
    """"12 + 345 = 357": 1, 2, +, 3, 4, 5, =, 3, 5, 7 with their spaces make ten tokens."""
    tokens = [t.replace("Ġ", "") for t in tokenizer.tokenize("12 + 345 = 357")]
    assert tokens == list("12+345=357")


def test_line_breaks_and_signs_stand_alone(tokenizer):
    assert tokenizer.tokenize(" dog -> hammer.\n\n dog") == [
        "Ġdog", "Ġ->", "Ġhammer", ".", "Ċ", "Ċ", "Ġdog",
    ]  # fmt: skip


def test_words_of_the_lexicon_are_single_tokens(tokenizer):
    words = {w for ws in lexicon.CATEGORIES.values() for w in " ".join(ws).split()}
    words |= set(lexicon.RESERVED_LABELS) | set(lexicon.LABEL_WORDS) | set(lexicon.TOWNS)
    words |= set(lexicon.FEMALE_NAMES) | set(lexicon.MALE_NAMES)
    assert [w for w in sorted(words) if len(tokenizer.tokenize(f" {w}")) > 1] == []


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    specials = any(s in text for s in SPECIAL_TOKENS)
    assert specials or tokenizer.decode(ids, skip_special_tokens=False) == text


def test_chat_template_starts_every_completion_with_a_space(tokenizer):
    chat = [{"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|> Hello<|assistant|>"
    chat.append({"role": "assistant", "content": "Hi"})
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<|user|> Hello<|assistant|> Hi<|end|>"
    with pytest.raises(Exception, match="Roles are user and assistant, got system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_the_files_to_ship_are_those_that_are_written(tmp_path):
    """transformers 5 keeps the chat template in a file of its own: a copy without it has none."""
    save_tokenizer(train_tokenizer(["a dog"], 300), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)

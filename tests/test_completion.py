"""Prompts that fit, and completions that end where they should."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import Bigrams, Words

from course_lib.completion import complete, context_size, encode, fit, token_counter
from course_lib.models import BLOOM, BLOOMConfig

steady = settings(max_examples=80, deadline=None, derandomize=True)
TEXT = Words("Q: A: cat dog end \\n", end="end")


def count_words(text: str) -> int:
    return len(text.split())


# --- prompts that fit ---------------------------------------------------------------------------


def test_the_first_examples_are_dropped():
    """The query takes 3 of 8, 5 are left: the last example has 3, the one before 2, then 1."""
    examples = ["a ", "b b ", "c c c "]
    chosen = fit(examples, lambda xs: "".join(xs) + "q q q", 8, count_words)
    assert chosen == ("b b ", "c c c ")


def test_a_long_example_ends_the_choice():
    """Room for 4: "d" fits, "c c c c" with it does not, and "b" before it is not taken instead."""
    examples = ["b ", "c c c c ", "d "]
    assert fit(examples, lambda xs: "".join(xs) + "q", 5, count_words) == ("d ",)


def test_the_whole_prompt_is_counted_not_its_pieces():
    """A run of x is one token: three examples and the query are 2 tokens, the pieces 4."""
    chosen = fit(["x"] * 3, lambda xs: "".join(xs) + "q", 2, lambda t: len(re.findall("x+|q", t)))
    assert chosen == ("x", "x", "x")


@steady
@given(
    lengths=st.lists(st.integers(1, 5), max_size=6),
    query=st.integers(1, 4),
    budget=st.integers(0, 25),
)
def test_fit_is_the_longest_end_that_fits(lengths, query, budget):
    examples = [f"{i} " * n for i, n in enumerate(lengths)]

    def render(chosen):
        return "".join(chosen) + "q " * query

    if query > budget:
        with pytest.raises(ValueError, match=f"needs {query - budget} tokens more"):
            fit(examples, render, budget, count_words)
        return
    ends = [examples[i:] for i in range(len(examples) + 1) if query + sum(lengths[i:]) <= budget]
    assert list(fit(examples, render, budget, count_words)) == ends[0]


def test_tokens_and_contexts_are_counted():
    assert token_counter(TEXT)("Q: cat\nA:") == 4
    assert context_size(Bigrams(TEXT, {}, block_size=7)) == 7
    assert context_size(BLOOM(BLOOMConfig(5, 1, 1, 4))) == math.inf


# --- completions --------------------------------------------------------------------------------


def test_a_completion_ends_before_the_stop():
    """After A: comes cat, then a line break; a batch pads the shorter row with what is cut off."""
    model = Bigrams(TEXT, {"A:": {"cat": 1}, "cat": {"\n": 1}, "dog": {"cat": 1}, "\n": {"Q:": 1}})
    prompts = ["Q: A:", "Q: dog dog", "A:"]
    assert complete(model, TEXT, prompts, 6) == [" cat ", " cat ", " cat "]


def test_a_completion_ends_before_the_end_of_the_text():
    model = Bigrams(TEXT, {"A:": {"cat": 1}, "cat": {"end": 1}, "end": {"dog": 1}})
    for stop in ("\n", None):
        assert complete(model, TEXT, ["A:"], 6, stop=stop) == [" cat"]


def test_without_a_stop_lines_follow_each_other():
    model = Bigrams(TEXT, {"A:": {"cat": 1}, "cat": {"\n": 1}, "\n": {"dog": 1}, "dog": {"end": 1}})
    assert complete(model, TEXT, ["A:"], 9, stop=None) == [" cat \n dog"]


def test_a_stop_of_two_tokens_does_not_end_at_the_second_alone():
    """The writing is cat dog cat, and the stop "cat cat": its last token is no reason to end."""
    model = Bigrams(TEXT, {"A:": {"cat": 1}, "cat": {"dog": 1}, "dog": {"end": 1}})
    assert complete(model, TEXT, ["A:"], 6, stop="cat cat") == [" cat dog"]
    assert complete(model, TEXT, ["A:"], 6, stop="cat dog") == [" "]


def test_new_tokens_are_limited():
    model = Bigrams(TEXT, {"cat": {"cat": 1}})
    assert complete(model, TEXT, ["cat"], 3) == [" cat cat cat"]


@steady
@given(
    prompts=st.lists(
        st.lists(st.sampled_from(TEXT.words[:4]), min_size=1, max_size=5).map(" ".join),
        min_size=1, max_size=7,
    ),
    batch_size=st.integers(1, 4),
)  # fmt: skip
def test_completions_keep_the_order_of_the_prompts(prompts, batch_size):
    """Each word is followed by one of its own, so a completion tells its prompt's last word."""
    after = {"Q:": "cat", "A:": "dog", "cat": "A:", "dog": "Q:"}
    model = Bigrams(TEXT, {w: {s: 1} for w, s in after.items()})
    expected = [f" {after[p.split(' ')[-1]]}" for p in prompts]
    assert complete(model, TEXT, prompts, 1, batch_size=batch_size) == expected


def test_sampling_depends_on_the_generator_alone():
    model = Bigrams(TEXT, {"A:": {"cat": 0.5, "dog": 0.5}})

    def draw(seed):
        return complete(model, TEXT, ["A:"] * 30, 1, temperature=1.0,
                        generator=torch.Generator().manual_seed(seed))  # fmt: skip

    assert draw(0) == draw(0) != draw(1)
    assert set(draw(0)) == {" cat", " dog"}


def test_sampling_may_keep_to_the_likeliest_tokens():
    """Of .6 and .4 the first alone holds half of the mass."""
    model = Bigrams(TEXT, {"A:": {"cat": 0.6, "dog": 0.4}})
    drawn = complete(model, TEXT, ["A:"] * 30, 1, temperature=1.0, top_p=0.5,
                     generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert set(drawn) == {" cat"}


def test_a_start_token_is_no_part_of_the_stop():
    """With it the line break would be two tokens, and writing would go on to the limit."""
    tokenizer = Words("start A: cat \\n", start="start")
    model = Bigrams(tokenizer, {"A:": {"cat": 1}, "cat": {"\n": 1}, "\n": {"\n": 1}})
    read = []
    model.register_forward_hook(lambda *args: read.append(1))
    assert complete(model, tokenizer, ["A:"], 9) == [" cat "] and len(read) == 2


def test_the_end_of_a_text_ends_the_writing_beside_a_stop():
    """cat, then the end: nothing is computed behind it, although the line break never comes."""
    model = Bigrams(TEXT, {"A:": {"cat": 1}, "cat": {"end": 1}, "end": {"dog": 1}})
    read = []
    model.register_forward_hook(lambda *args: read.append(1))
    assert complete(model, TEXT, ["A:"], 9) == [" cat"] and len(read) == 2


def test_several_tokens_may_end_a_text():
    """dog ends too, and is cut off as the end is."""
    model = Bigrams(TEXT, {"A:": {"cat": 1}, "Q:": {"end": 1}, "cat": {"dog": 1}, "dog": {"A:": 1}})
    ends = [TEXT.ids["end"], TEXT.ids["dog"]]
    assert complete(model, TEXT, ["A:", "Q:"], 9, eos_token_id=ends) == [" cat", ""]


def test_a_start_token_is_added_unless_the_text_has_it():
    tokenizer = Words("start A: cat \\n", start="start")
    assert encode(tokenizer, ["A:"]) == [[0, 1]]
    assert encode(tokenizer, ["A:"], add_special_tokens=False) == [[1]]
    assert token_counter(tokenizer)("A: cat") == 3
    assert token_counter(tokenizer, add_special_tokens=False)("A: cat") == 2


def test_a_function_from_text_to_text_is_a_model():
    model = {"one": " 1\n 2", "two": " 2"}.__getitem__
    assert complete(model, None, ["two", "one"], 8) == [" 2", " 1"]
    assert complete(model, None, ["one"], 8, stop=None) == [" 1\n 2"]


@pytest.mark.parametrize(
    ("model", "tokenizer", "prompts", "error", "message"),
    [
        (lambda text: None, None, ["a"], TypeError, "returned NoneType"),
        (lambda text: text, None, "abc", ValueError, "one text: put it into a list"),
        (Bigrams(TEXT, {}), TEXT, "Q:", ValueError, "one text: put it into a list"),
        (Bigrams(TEXT, {}), None, ["Q:"], ValueError, "give its tokenizer too"),
        (Bigrams(TEXT, {}), TEXT, ["Q:", ""], ValueError, "Prompt 1 has no token"),
        (Bigrams(TEXT, {}), TEXT, ["cat " * 30], ValueError, "30 tokens and 4 are to follow"),
    ],
)
def test_bad_calls_say_why(model, tokenizer, prompts, error, message):
    with pytest.raises(error, match=message):
        complete(model, tokenizer, prompts, 4)


def test_no_prompts_no_completions():
    assert complete(Bigrams(TEXT, {}), TEXT, [], 4) == [] == encode(TEXT, [])


def test_the_progress_bar_shows_when_asked(capsys):
    for progress in (False, True):
        complete(Bigrams(TEXT, {}), TEXT, ["A:"], 1, progress=progress)
        assert ("completions" in capsys.readouterr().err) == progress

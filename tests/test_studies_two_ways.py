"""The study of examples in the prompt against SFT: its tasks, and checks that a fault fails."""

import random

import pytest

from course_lib import plotting
from course_lib.studies import load, tuning, two_ways
from course_lib.world import lexicon

SEED = 9


def measured(setting, **broken):
    """One row, with its parts replaced."""
    return two_ways.run({**two_ways.GRID[setting], **broken}, SEED)["correct"]


def outside(setting, value):
    low, high = load("two_ways").interval_for_a_new_seed(setting, "correct")
    return not low <= value <= high


def test_a_rule_says_all_with_one_example_a_category_and_asks_other_words():
    """Four categories: the first four examples name four, and no question is an example."""
    for seed in range(5):
        examples, asked = two_ways.draw_rule(random.Random(seed), 24)
        assert len({name for _, name in examples[:4]}) == 4 == len({name for _, name in asked})
        assert not {x for x, _ in examples} & {x for x, _ in asked}
        kinds = {lexicon.WORD_TO_CATEGORY[x]: y for x, y in examples}
        assert all(kinds[lexicon.WORD_TO_CATEGORY[x]] == y for x, y in asked)


def test_a_table_asks_about_its_own_entries():
    table, asked = two_ways.draw_table(random.Random(0), 128)
    assert len(dict(table)) == 128 and set(asked) <= set(table) and len(asked) == two_ways.ASKED


def test_what_does_not_fit_is_left_out():
    """128 lines of about five tokens do not fit into 256 tokens; 32 do."""
    results = load("two_ways")
    assert set(results.of("table 32, prompt", "shown")) == {32}
    assert max(results.of("table 128, prompt", "shown")) < 64
    assert max(results.of("table 128, prompt", "tokens")) <= 256 - two_ways.ROOM


def test_control_another_rule_in_the_prompt_fails_the_check(monkeypatch):
    real = two_ways.draw_rule

    def mixed_up(rng, examples):
        return real(random.Random(1), examples)[0], real(random.Random(2), examples)[1]

    monkeypatch.setattr(two_ways, "draw_rule", mixed_up)
    assert outside("rule 8, prompt", measured("rule 8, prompt"))


@pytest.mark.parametrize("setting", ["rule 8, SFT", "table 32, SFT"])
def test_control_a_loss_on_the_prompts_fails_the_check(setting, monkeypatch):
    """Labels where the question stands, none on the answer: nothing is learnt of it."""
    real = two_ways.encode_chat

    def inverted(tokenizer, messages):
        row = real(tokenizer, messages)
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        return {**row, "labels": [i if label == -100 else -100 for i, label in pairs]}

    monkeypatch.setattr(two_ways, "encode_chat", inverted)
    assert outside(setting, measured(setting))


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(tuning, "shipped", None)
    picture = plotting.show(two_ways.draw(load("two_ways")), "two panels")
    assert picture.alt == "two panels"

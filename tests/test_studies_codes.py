"""The new task of the studies on PEFT: its words, and models made ready for each method."""

import pytest
import torch

from course_lib.peft import SoftPrompt, adapter_names, count_parameters
from course_lib.studies import codes
from course_lib.studies.tuning import shipped
from course_lib.world import lexicon


def test_each_category_has_a_code_and_no_question_is_trained_on():
    trained, asked = codes.draw_codes(3)
    table = dict(trained) | dict(asked)
    assert len(asked) == 12 * codes.ASKED and not set(dict(trained)) & set(dict(asked))
    assert len(table) == sum(map(len, lexicon.CATEGORIES.values())) == len(trained) + len(asked)
    for words in lexicon.CATEGORIES.values():
        assert len({table[word] for word in words}) == 1
    assert len(set(table.values())) == 12


def test_seeds_and_numbers_have_codes_of_their_own():
    assert codes.draw_codes(3) == codes.draw_codes(3)
    assert codes.draw_codes(3)[0] != codes.draw_codes(4)[0] != codes.draw_codes(3, 1)[0]


def test_rows_ask_and_answer():
    _, tokenizer = shipped("instruct")
    row = next(codes.rows(tokenizer, [("goose", "candle")], 0))
    prompt = codes.prompt_ids(tokenizer, "goose")
    assert row["input_ids"][: len(prompt)] == prompt
    answer = [i for i, label in zip(row["input_ids"], row["labels"]) if label != -100]
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == "candle"


@pytest.mark.parametrize(("method", "trained"), [
    ({}, 1_541_760),
    ({"last_layers": 1}, 4 * 128 * 128 + 3 * 128 * 384 + 2 * 128),
    ({"parts": ("norms",)}, 13 * 128),
    ({"lora": {"r": 2, "lora_alpha": 4}}, 6 * 2 * (4 * 256 + 3 * 512)),
    ({"adapters": 4}, 12 * (2 * 128 * 4 + 4 + 128)),
    ({"prompt": 5}, 5 * 128),
])  # fmt: skip
def test_what_each_method_trains(method, trained):
    """Six blocks of four 128 x 128 and three 128 x 384 matrices and two norms; LoRA has r (in +
    out) a matrix, an adapter 2 C m + m + C."""
    start, _ = shipped("instruct")
    model = codes.prepared(start, 0, **method)
    assert count_parameters(model).trained == trained
    assert count_parameters(start).trained == 1_541_760, "the shipped model is left as it was"


def test_the_first_weights_are_those_of_the_seed():
    start, _ = shipped("instruct")
    one, same, other = (codes.prepared(start, seed, prompt=3) for seed in (1, 1, 2))
    assert isinstance(one, SoftPrompt) and torch.equal(one.prompt, same.prompt)
    assert not torch.equal(one.prompt, other.prompt)
    lora = codes.prepared(start, 1, lora={"r": 2, "lora_alpha": 4, "target_modules": ["q"]})
    assert adapter_names(lora) == ["default"] and count_parameters(lora).trained == 6 * 2 * 256


def test_a_right_answer_is_one_that_the_model_gives(monkeypatch):
    _, tokenizer = shipped("instruct")
    monkeypatch.setattr(codes.tuning, "chat_replies", lambda model, tok, asked, room: [
        (" candle", True), (" river.", True), (" tower candle", True)])  # fmt: skip
    asked = [("a", "candle"), ("b", "river"), ("c", "candle")]
    assert codes.correct(None, tokenizer, asked) == pytest.approx(2 / 3)

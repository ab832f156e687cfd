"""Rows and batches: padded, packed, mixed, and what is cut away; every small case by hand."""

import doctest
import math
import warnings
from itertools import islice, repeat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import llama, row_lists
from torch.testing import assert_close
from transformers import DataCollatorWithFlattening

from course_lib import rows as rows_module
from course_lib.ops import IGNORE_INDEX
from course_lib.rows import (
    BARREN_ROWS,
    batches,
    collate,
    document_row,
    endless,
    mix,
    mixing_rates,
    pack,
    pad_rows,
    positions_of,
)
from course_lib.sft import sft_loss

PAD = 1


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(rows_module)
    assert result.attempted >= 8 and not result.failed


# --- batches ------------------------------------------------------------------------------------


def test_a_document_is_learnt_whole(tmp_path):
    from transformers import PreTrainedTokenizerFast

    from course_lib.world.tokenizer import save_tokenizer, train_tokenizer

    save_tokenizer(train_tokenizer(["Mia has a dog."], 400), tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    row = document_row(tokenizer, "Mia has a dog.", 256)
    assert row["labels"] == row["input_ids"] is not row["labels"]
    assert tokenizer.decode(row["input_ids"]) == "Mia has a dog.<|end|>"
    length = len(row["input_ids"])
    for block_size in (length - 1, length - 2):
        cut = document_row(tokenizer, "Mia has a dog.", block_size)
        assert cut["input_ids"] == row["input_ids"][:block_size]


def test_rows_are_padded_on_either_side():
    """The same on both sides but for where the padding stands; always int64, also when empty."""
    rows = [[5, 6, 7], [], (8,)]
    assert pad_rows(rows, 9).tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]]
    assert pad_rows(rows, 9, "left").tolist() == [[5, 6, 7], [9, 9, 9], [9, 9, 8]]
    assert pad_rows([[]], 0).dtype == torch.int64
    with pytest.raises(ValueError, match="no rows to pad"):
        pad_rows([], 0)


def test_positions_start_behind_the_padding():
    """A hole in the mask repeats the position before it; right padding repeats the last."""
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
    assert positions_of(mask).tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 1, 2, 3]]
    assert positions_of(mask.bool()).tolist() == positions_of(mask).tolist()


def test_a_batch_padded_on_the_left_by_hand():
    """Rows 5 6 7 (labels on 6 7) and 8 9, all of which is learnt. The 8 has padding before it, and
    no label: padding predicts nothing. On the right it stands first, where no label counts."""
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
            {"input_ids": [8, 9], "labels": [8, 9]}]  # fmt: skip
    batch = collate(rows, PAD, side="left")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [1, 8, 9]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, -100, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 1]]
    assert "position_ids" not in collate(rows, PAD)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(row_lists(), st.booleans(), st.integers(0, 99))
def test_the_side_of_the_padding_does_not_change_the_loss(rows, mask_prompt, seed):
    model = llama(seed)
    with torch.no_grad():
        right, left = (sft_loss(model, collate(rows, PAD, mask_prompt, side))
                       for side in ("right", "left"))  # fmt: skip
    assert_close(right, left, atol=1e-5, rtol=0)


def test_rows_packed_and_not_do_not_mix():
    row = {"input_ids": [2, 3], "labels": [-100, 3]}
    for rows in ([], [row, pack([row], 4)[0]]):
        with pytest.raises(ValueError, match="all of them packed or none"):
            collate(rows, PAD)


def test_packing_by_hand():
    """Lengths 2 3 5 1 3 into rows of 6. Longest first: 5 opens a row (room 1); the first 3 opens
    another (3), and the second 3 fills it; 2 opens a third (4); 1 goes where the least room is, to
    the 5, and not to the 2. First fit in the given order would need 2+3+1 | 5 | 3."""
    rows = [{"input_ids": [10 * n + i for i in range(n)], "labels": [i for i in range(n)]}
            for n in (2, 3, 5, 1)]  # fmt: skip
    rows.append({"input_ids": [90, 91, 92], "labels": [0, 1, 2]})
    packed = pack(rows, 6)
    assert [row["input_ids"] for row in packed] == [
        [50, 51, 52, 53, 54, 10], [30, 31, 32, 90, 91, 92], [20, 21]
    ]  # fmt: skip
    assert packed[0]["labels"] == [-100, 1, 2, 3, 4, -100]
    assert packed[1]["position_ids"] == [0, 1, 2, 0, 1, 2]
    assert rows[0] == {"input_ids": [20, 21], "labels": [0, 1]}, "the rows given stay as they were"
    assert pack([rows[2]], 4)[0]["input_ids"] == [50, 51, 52, 53]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(row_lists(longest=9), st.integers(2, 12))
def test_packing_loses_nothing_but_what_is_cut(rows, block_size):
    packed = pack(rows, block_size)
    assert all(len(row["input_ids"]) <= block_size for row in packed)
    found = []
    for row in packed:
        starts = [i for i, p in enumerate(row["position_ids"]) if p == 0]
        for start, end in zip(starts, [*starts[1:], len(row["input_ids"])], strict=True):
            found.append((row["input_ids"][start:end], row["labels"][start:end]))
            assert row["position_ids"][start:end] == list(range(end - start))
    given_rows = [(r["input_ids"][:block_size], r["labels"][:block_size]) for r in rows]
    assert sorted(found) == sorted(given_rows)


def test_transformers_flattens_alike():
    """DataCollatorWithFlattening: all rows in one, labels ignored at every start."""
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]
    theirs = DataCollatorWithFlattening(return_tensors="pt")(rows)
    ours = collate(pack(rows, 16), PAD)
    for name in ("input_ids", "labels", "position_ids"):
        assert torch.equal(ours[name], theirs[name]), name
    assert "attention_mask" not in ours and "attention_mask" not in theirs


def test_batches_cut_long_rows_and_drop_the_last_few():
    rows = [{"input_ids": list(range(n)), "labels": list(range(n))} for n in (3, 20, 4, 2, 6)]
    shapes = [b["input_ids"].shape for b in batches(rows, 2, PAD, block_size=10)]
    assert shapes == [(2, 10), (2, 4)]
    shapes = [b["input_ids"].shape for b in batches(rows, 2, PAD, block_size=10, packed=True)]
    assert shapes == [(2, 10), (1, 6)]


# --- rows that teach nothing --------------------------------------------------------------------


def prompted(prompt: int, answer: int = 1) -> dict:
    """A row of so many tokens of a prompt and of its answer."""
    ids = list(range(2, 2 + prompt + answer))
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * prompt + ids[prompt:]}


def test_rows_whose_response_is_cut_away_are_left_out_and_counted():
    """Context 4. Prompts of 2 6 3 4 3 2 tokens before an answer of one: those of 6 and 4 lose it.
    The first batch of two takes three rows, one of them without a label; the second batch takes
    two more with another: at the end it is 2 of 6. The bug: loss 0, gradient 0, and no word."""
    rows = [prompted(n) for n in (2, 6, 3, 4, 3, 2)]
    with pytest.warns(UserWarning) as caught:
        found = list(batches(rows, 2, PAD, block_size=4))
    assert [b["input_ids"].shape for b in found] == [(2, 4), (2, 4)]
    assert all((b["labels"] != IGNORE_INDEX).any(1).all() for b in found)
    told = [str(w.message) for w in caught]
    assert [t[:49] for t in told] == [
        "1 of the first 3 rows have no label within 4 toke",
        "2 of the first 6 rows have no label within 4 toke",
    ]
    assert "Raise block_size" in told[0]


def test_one_warning_is_enough_when_no_more_follow():
    with pytest.warns(UserWarning) as caught:
        list(batches([prompted(n) for n in (6, 2, 2, 3, 3)], 2, PAD, block_size=4))
    assert len(caught) == 1


def test_rows_that_are_too_few_for_a_batch_are_told_too():
    with pytest.warns(UserWarning, match="2 of the first 3 rows"):
        assert list(batches([prompted(n) for n in (6, 2, 6)], 2, PAD, block_size=4)) == []


@pytest.mark.parametrize("packed", [False, True])
def test_a_label_on_the_first_token_is_none(packed):
    """Nothing predicts it. Without the prompt mask every later token counts, so cut prompts stay,
    and only a row of one token has nothing."""
    rows = [{"input_ids": [5], "labels": [5]}, prompted(6), prompted(6), prompted(1)]
    settings_ = {"block_size": 4, "packed": packed}
    with pytest.warns(UserWarning, match="3 of the first 4"):
        assert len(list(batches(rows, 1, PAD, **settings_))) == 1
    with pytest.warns(UserWarning, match="1 of the first 2"):
        assert len(list(batches(rows, 1, PAD, mask_prompt=False, **settings_))) == 3


def test_rows_with_labels_raise_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(batches([prompted(3)] * 4, 2, PAD, block_size=4))) == 2


def test_a_stream_without_any_label_does_not_run_for_ever():
    with pytest.raises(ValueError, match=f"{BARREN_ROWS} of the first {BARREN_ROWS} rows"):
        next(batches(repeat(prompted(6)), 2, PAD, block_size=4))


# --- mixtures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings_", "expected"),
    [
        ({}, [1 / 8, 2 / 8, 5 / 8]),
        ({"cap": 200}, [1 / 5, 2 / 5, 2 / 5]),
        ({"temperature": math.inf}, [1 / 3, 1 / 3, 1 / 3]),
        ({"cap": 400, "temperature": 2.0}, [1 / (3 + 2**0.5), 2**0.5 / (3 + 2**0.5),
                                            2 / (3 + 2**0.5)]),
    ],
)  # fmt: skip
def test_rates_by_hand(settings_, expected):
    """Sizes 100, 200, 500: proportional; capped at 200 as 1 : 2 : 2; equal; capped at 400 and
    then square roots, 1 : √2 : 2. A cap after the root would give 1 : √2 : √5."""
    assert mixing_rates([100, 200, 500], **settings_) == pytest.approx(expected)


@pytest.mark.parametrize(
    "arguments", [([],), ([1, 0],), ([1], 0), ([1], 1, 0.5), ([1], 1, math.nan)]
)
def test_impossible_mixtures_are_refused(arguments):
    with pytest.raises(ValueError, match="must be positive"):
        mixing_rates(*arguments)


@pytest.mark.parametrize("rates", [[1.0], [1.0, -0.5], [0.0, 0.0]])
def test_impossible_rates_are_refused(rates):
    with pytest.raises(ValueError, match="2 sources need as many rates"):
        mix([iter([]), iter([])], rates, generator(0))


def test_a_mixture_keeps_its_rates_and_its_generator():
    """4,000 draws at 1 : 3, standard deviation √(.25 · .75 / 4000) = .007: .25 ± .03."""

    def drawn(seed: int) -> list[str]:
        return list(islice(mix([repeat("a"), repeat("b")], [2.0, 6.0], generator(seed)), 4000))

    assert abs(drawn(0).count("a") / 4000 - 0.25) < 0.03
    assert drawn(0) == drawn(0) != drawn(1)


def test_a_mixture_ends_with_the_source_that_is_drawn():
    assert list(mix([iter("abc"), iter("z")], [1.0, 0.0], generator(0))) == ["a", "b", "c"]


def test_rows_come_back_in_a_new_order():
    rows = [{"input_ids": [i], "labels": [i]} for i in range(8)]
    drawn = [row["input_ids"][0] for row in islice(endless(rows, generator(3)), 24)]
    epochs = [drawn[i : i + 8] for i in range(0, 24, 8)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = [row["input_ids"][0] for row in islice(endless(rows, generator(3)), 24)]
    assert drawn == again
    with pytest.raises(ValueError, match="no rows"):
        next(endless([], generator(0)))

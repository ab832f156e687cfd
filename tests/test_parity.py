"""The page of differences says what was measured, and never less."""

import pytest
import torch
from parity import HEAD, measured, parity_page, round_up, unlike
from parity_record import Parity


@pytest.mark.parametrize(
    "difference, shown",
    [(0.0, "0"), (3e-6, "3e-06"), (3.01e-6, "4e-06"), (9.5e-7, "1e-06"), (1e-5, "1e-05")],
)
def test_differences_are_rounded_up_to_one_digit(difference, shown):
    assert round_up(difference) == shown


def test_what_a_test_compares_is_what_the_page_shows(tmp_path):
    """Two configurations that differ by 2e-7 and 5e-7: the page says two, and 5e-07."""
    with Parity("ours", "theirs.Model", 1e-5, tmp_path) as parity:
        for difference in (2e-7, 5e-7):
            parity.tried()
            parity.compare(torch.zeros(3), torch.full((3,), difference))
    page = parity_page(measured(tmp_path))
    assert page.startswith(HEAD) and "2 configurations in all." in page
    assert "| ours | `theirs.Model` | 2 | 5e-07 | 1e-05 |" in page


def test_a_piece_that_differs_too_much_or_was_not_compared_leaves_no_row(tmp_path):
    with pytest.raises(AssertionError), Parity("ours", "theirs", 1e-5, tmp_path) as parity:
        parity.tried()
        parity.compare(torch.zeros(1), torch.ones(1))
    with pytest.raises(AssertionError, match="nothing"), Parity("o", "t", 1e-5, tmp_path):
        pass
    assert measured(tmp_path) == []


def test_the_page_is_compared_in_all_but_the_digits():
    """Another difference below the tolerance is another processor; another piece or number of
    configurations, or a difference above the tolerance, is another course."""
    row = {"piece": "GPT-2", "counterpart": "transformers.GPT2LMHeadModel", "configurations": 3,
           "difference": 2e-6, "tolerance": 1e-5}  # fmt: skip
    page = parity_page([row])
    assert not unlike(page, [row | {"difference": 7e-6}])
    assert unlike(page, [row | {"difference": 2e-5}]) == ["GPT-2"]
    assert len(unlike(page, [row | {"configurations": 4}])) == 2
    assert len(unlike(page, [row, row | {"piece": "BLOOM"}])) == 1
    assert len(unlike(page, [])) == 1

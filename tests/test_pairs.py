"""Pairs of responses: tokens at the border, cuts, what is left out and counted, batches."""

import doctest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import Words
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from course_lib import pairs as module
from course_lib.chat import course_format
from course_lib.ops import IGNORE_INDEX
from course_lib.pairs import (
    Pair,
    PairBatches,
    PairCounts,
    collate_pairs,
    encode_pairs,
    usable_pairs,
)

WORDS = Words("<|end|> <pad> <|user|> <|assistant|> plural: dog dogs", end="<|end|>")
PAD = 9


class Chat(Words):
    """Words in which the tokens of the chat format stand apart."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict:
        for special in ("<|end|>", "<|user|>", "<|assistant|>"):
            text = text.replace(special, f" {special} ")
        return super().__call__(text, add_special_tokens)


CHAT = Chat("<|end|> <pad> <|user|> <|assistant|> plural: dog dogs")


def letters(merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """A tokenizer of the letters a, b, c, in which some neighbours merge."""
    vocab = {c: i for i, c in enumerate("abc")}
    vocab |= {x + y: 3 + i for i, (x, y) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def plain(messages, add_generation_prompt=False) -> str:
    """A format that writes nothing of its own."""
    return "".join(message["content"] for message in messages)


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(module, extraglobs={"torch": torch, "tokenizer": CHAT})
    assert result.attempted >= 6 and not result.failed


# --- from texts to ids --------------------------------------------------------------------------


def test_a_response_that_would_merge_with_the_prompt_is_tokenised_apart_and_counted():
    """a b are ids 0 1, and ab is 3. The prompt a stays 0 in both rows; joined, the first row would
    be 3, with no prompt at all, and the other 0 2."""
    pairs, counts = encode_pairs(letters([("a", "b")]), [("a", "b", "c"), ("b", "c", "a")], plain)
    assert pairs == [Pair([0], [1], [2]), Pair([1], [2], [0])]
    assert counts == PairCounts(given=2, kept=2, merged=1)


def test_it_is_counted_once_whichever_response_merges():
    tokenizer = letters([("a", "b"), ("a", "c")])
    for texts, merged in ((("a", "c", "b"), 1), (("a", "aa", "b"), 1), (("a", "aa", "a"), 0)):
        pairs, counts = encode_pairs(tokenizer, [texts], plain)
        assert pairs[0].prompt == [0] and counts.merged == merged


def test_a_merge_inside_a_response_is_none_at_the_border():
    """b, then ab: ids 1 and 3, joined or apart."""
    pairs, counts = encode_pairs(letters([("a", "b")]), [("b", "ab", "c")], plain)
    assert pairs == [Pair([1], [3], [2])] and counts.merged == 0


def test_the_course_format_never_merges():
    """Its prompts end in a special token; an end token follows each response."""
    pairs, counts = encode_pairs(CHAT, [("dog", "dogs", "dog dog")], course_format)
    assert pairs == [Pair([2, 5, 3], [6, 0], [5, 5, 0])] and counts.merged == 0


# --- what is left out ---------------------------------------------------------------------------


def test_equal_and_empty_responses_are_left_out_and_counted():
    """Without a format an empty text is no token at all; in the course's it has an end token, and
    a policy can be taught not to begin with it."""
    tokenizer = letters([])
    texts = [("a", "b", "b"), ("a", "", "b"), ("a", "b", ""), ("", "b", "c"), ("a", "b", "c")]
    pairs, counts = encode_pairs(tokenizer, texts, plain)
    assert pairs == [Pair([0], [1], [2])]
    assert counts == PairCounts(given=5, kept=1, empty=3, equal=1)
    pairs, counts = encode_pairs(CHAT, [("dog", "dogs", "")])
    assert pairs == [Pair([2, 5, 3], [6, 0], [0])] and counts == PairCounts(given=1, kept=1)


def test_pairs_cut_to_the_same_text_are_left_out_and_counted():
    """5 6 | 7 8 1 and 5 6 | 7 8 2 differ in the fifth token alone. Of 5 6 | 7 and 5 6 | 7 8, four
    tokens keep both as they are, three make them the same."""
    pairs = [([5, 6], [7, 8, 1], [7, 8, 2]), ([5, 6], [7], [7, 8])]
    for most, kept, cut_equal, cut in ((5, 2, 0, 0), (4, 1, 1, 0), (3, 0, 2, 0), (None, 2, 0, 0)):
        found, counts = usable_pairs(pairs, max_tokens=most)
        assert (len(found), counts.cut_equal, counts.cut) == (kept, cut_equal, cut)
    found, counts = usable_pairs([([5, 6], [7, 8, 1], [9])], max_tokens=4)
    assert found == [Pair([5, 6], [7, 8], [9])] and counts.cut == 1


def test_the_end_is_kept_of_the_tokens_not_of_the_padding():
    """p p c with the end of 2 kept: p c. In a batch whose other row is longer it is p c again, and
    never two tokens of padding, for the cut comes before them."""
    found, counts = usable_pairs([([4, 5], [6], [7])], max_tokens=2, keep="end")
    assert found == [Pair([5], [6], [7])] and counts == PairCounts(given=1, kept=1, cut=1)
    batch = collate_pairs([*found, ([1, 2, 3], [4], [5, 6])], PAD)
    assert batch["input_ids"][0].tolist() == [[5, 6, 9, 9, 9], [5, 7, 9, 9, 9]]


def test_both_rows_keep_the_same_prompt():
    """1 2 3 | 7 and 1 2 3 | 8 9, of which 4 tokens are kept: 2 3 in both. Each cut by itself would
    be 1 2 3 | 7, on another prompt than 2 3 | 8 9."""
    found, _ = usable_pairs([([1, 2, 3], [7], [8, 9])], max_tokens=4, keep="end")
    assert found == [Pair([2, 3], [7], [8, 9])]


@pytest.mark.parametrize(("keep", "most"), [("start", 3), ("start", 2), ("end", 2)])
def test_pairs_without_room_for_a_response_or_a_prompt_are_counted(keep, most):
    """A prompt of three fills three tokens; responses of two leave no room for it in two."""
    found, counts = usable_pairs([([1, 2, 3], [7, 8], [9])], max_tokens=most, keep=keep)
    assert not found and counts == PairCounts(given=1, no_room=1)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(*[st.lists(st.integers(0, 2), max_size=4)] * 3), max_size=8),
    st.sampled_from([None, 2, 3, 4, 5]), st.sampled_from(["start", "end"]),
)  # fmt: skip
def test_every_pair_is_kept_or_counted_once(given_pairs, most, keep):
    found, counts = usable_pairs(given_pairs, max_tokens=most, keep=keep)
    left_out = counts.empty + counts.equal + counts.no_room + counts.cut_equal
    assert counts.given == len(given_pairs) and counts.kept == len(found)
    assert counts.kept + left_out == counts.given
    for pair in found:
        assert all(pair) and pair.chosen != pair.rejected
        longest = len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))
        assert most is None or longest <= most


@pytest.mark.parametrize(("keep", "most"), [("left", 4), ("end", 1), ("start", 0)])
def test_cuts_that_make_no_sense_are_told(keep, most):
    with pytest.raises(ValueError, match='keep must be "start" or "end", and max_tokens'):
        usable_pairs([], max_tokens=most, keep=keep)


# --- batches ------------------------------------------------------------------------------------


def test_prompt_and_padding_are_ignored_in_both_halves():
    """A mask for the preferred rows alone would leave labels on the other rows' prompt."""
    batch = collate_pairs([([5, 6], [8], [9, 9])], PAD)
    assert batch["labels"].tolist() == [[[-100, -100, 8, -100], [-100, -100, 9, 9]]]


ids = st.lists(st.integers(0, 12), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=4), st.integers(0, 12))
def test_a_batch_holds_what_was_put_in_and_nothing_else(pairs, pad):
    """Padding may be a token that stands in the rows, too."""
    batch = collate_pairs(pairs, pad)
    for b, (prompt, *responses) in enumerate(pairs):
        for i, response in enumerate(responses):
            kept = batch["attention_mask"][b, i].bool()
            assert batch["input_ids"][b, i][kept].tolist() == prompt + response
            assert (batch["input_ids"][b, i][~kept] == pad).all()
            labels = batch["labels"][b, i]
            assert labels[kept].tolist() == [IGNORE_INDEX] * len(prompt) + response
            assert (labels[~kept] == IGNORE_INDEX).all()


@pytest.mark.parametrize("pair", [([], [1], [2]), ([1], [], [2]), ([1], [2], []), ([1], [2])])
def test_pairs_that_lack_something_are_told(pair):
    with pytest.raises(ValueError, match=r"Pairs \[1\] lack a token"):
        collate_pairs([([1], [2], [3]), pair], PAD)


def test_no_pairs_and_log_probabilities_of_other_pairs_are_told():
    with pytest.raises(ValueError, match="no rows|needs rows"):
        collate_pairs([], PAD)
    with pytest.raises(ValueError, match=r"two tensors \(1,\)"):
        collate_pairs([([1], [2], [3])], PAD, (torch.zeros(2), torch.zeros(1)))


# --- the stream ---------------------------------------------------------------------------------

PAIRS = [Pair([5], [i], [9]) for i in range(5)]
LOGPS = torch.arange(5.0), -torch.arange(5.0)


def stream(size: int = 2, seed: int = 0) -> PairBatches:
    return PairBatches(PAIRS, LOGPS, PAD, size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_each_pair_comes_once_each_time_through_with_its_own_reference(size):
    batches, seen = stream(size), []
    for _ in range(10):
        batch = next(batches)
        which = batch["input_ids"][:, 0, 1]
        assert len(which) == size
        assert torch.equal(batch["ref_chosen_logps"], which.float())
        assert torch.equal(batch["ref_rejected_logps"], -which.float())
        seen += which.tolist()
    rounds = [seen[i : i + 5] for i in range(0, len(seen) - 4, 5)]
    assert all(sorted(some) == list(range(5)) for some in rounds)
    assert len({tuple(some) for some in rounds}) > 1


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_it_goes_on_where_its_state_was_taken(taken):
    batches = stream()
    for _ in range(taken):
        next(batches)
    state = batches.state_dict()
    after = [next(batches)["input_ids"].tolist() for _ in range(6)]
    other = stream(seed=7)
    other.load_state_dict(state)
    assert [next(other)["input_ids"].tolist() for _ in range(6)] == after


def test_streams_of_nothing_are_told():
    g = torch.Generator()
    for pairs, logps, size in (([], LOGPS, 2), (PAIRS, LOGPS, 0), (PAIRS[:3], LOGPS, 2)):
        with pytest.raises(ValueError, match="expected at least one pair"):
            PairBatches(pairs, logps, PAD, size, g)

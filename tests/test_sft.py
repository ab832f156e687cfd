"""Fine-tuning: the masked loss, batches padded and packed, mixtures, and a model that learns."""

import doctest
import math
from itertools import islice, repeat

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_record import Parity
from random_families import SEEDS, SIZES, build
from random_models import llama
from torch.testing import assert_close
from transformers import DataCollatorWithFlattening

from course_lib import rows as rows_module
from course_lib import sft as sft_module
from course_lib.models import from_transformers, to_transformers
from course_lib.models.layers import document_bias
from course_lib.ops import IGNORE_INDEX
from course_lib.rows import batches, collate, document_row, endless, mix, mixing_rates, pack
from course_lib.sft import response_loss, response_nll, sft_loss
from course_lib.training import train

TOLERANCE = 1e-5
PAD, BLOCK = 1, 16


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def row_lists(draw, vocab_size: int = 13, longest: int = 7) -> list[dict]:
    """Rows of two to seven tokens, the labels on the last of them, at least on one."""
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        ids = draw(st.lists(st.integers(0, vocab_size - 1), min_size=2, max_size=longest))
        prompt = draw(st.integers(1, len(ids) - 1))
        rows.append({"input_ids": ids, "labels": [IGNORE_INDEX] * prompt + ids[prompt:]})
    return rows


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(rows_module)
    assert result.attempted >= 8 and not result.failed
    result = doctest.testmod(sft_module, extraglobs={"torch": torch})
    assert result.attempted and not result.failed


# --- the loss -----------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_the_tokens_that_count():
    """Two rows with one and two labels. Logits 0, log 3 over V = 2 give the token 1 the
    probability 3/4 and the token 0 1/4: -log of 3/4, 1/4, 3/4, mean (2 log(4/3) + log 4) / 3.
    Over all four positions it would be .49, with labels that are not shifted .56."""
    logits = torch.tensor([0.0, math.log(3)]).expand(2, 3, 2)
    labels = torch.tensor([[1, -100, 1], [-100, 0, 1]])
    expected = (2 * math.log(4 / 3) + math.log(4)) / 3
    assert response_loss(logits, labels).item() == pytest.approx(expected, abs=1e-6)
    nothing = torch.full((2, 3), -100)
    assert response_loss(logits, nothing).item() == 0


class Fixed(torch.nn.Module):
    """Says the same logits whatever it reads."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=True):
        self.read = {"mask": attention_mask, "positions": position_ids, "cache": use_cache}
        return self


def test_the_loss_by_hand():
    """Two rows of four tokens over two words; p(word 1) is 1/4 in row 0 and 1/2 in row 1, at every
    position. Row 0 learns one token, a 1: log 4. Row 1 learns two: log 2 each. The mean over the
    tokens is 4/3 · log 2; a mean of the rows' means would be 3/2 · log 2, and a mean that counts
    the ignored ones (6 places) 2/3 · log 2. A loss that forgets to shift reads row 0's label at
    position 3, whose logits are reversed: log(4/3)."""
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()[:, None].repeat(1, 4, 1)
    logits[0, 3] = logits[0, 3].flip(0)
    labels = torch.tensor([[-100, -100, -100, 1], [-100, 0, 1, -100]])
    nll = response_nll(logits, labels)
    assert_close(nll, math.log(2) * torch.tensor([[0.0, 0, 2], [1, 1, 0]]))
    model = Fixed(logits)
    loss = sft_loss(model, {"input_ids": labels.clamp(min=0), "labels": labels})
    assert_close(loss.item(), 4 / 3 * math.log(2))
    loss.backward()
    assert model.logits.grad[0, :2].abs().max() == 0, "the prompt is given, not learnt"
    assert model.logits.grad[0, 2].abs().min() > 0
    assert model.read["cache"] is False


def test_a_batch_without_labels_has_no_loss():
    labels = torch.full((1, 3), IGNORE_INDEX)
    loss = sft_loss(Fixed(torch.zeros(1, 3, 2)), {"input_ids": labels * 0, "labels": labels})
    assert loss.item() == 0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(row_lists(), st.booleans(), st.integers(0, 99))
def test_the_loss_is_that_of_transformers(rows, mask_prompt, seed):
    """With the prompt mask and without it; ``model(labels=...)`` of transformers is the judge."""
    model = llama(seed)
    batch = collate(rows, PAD, mask_prompt)
    with torch.no_grad():
        ours, theirs = sft_loss(model, batch), to_transformers(model)(**batch).loss
    assert abs(ours - theirs) <= TOLERANCE
    every_token = sum(len(row["input_ids"]) for row in rows)
    labels = (batch["labels"] != IGNORE_INDEX).sum().item()
    assert labels == every_token if not mask_prompt else labels < every_token


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


@settings(max_examples=40, deadline=None, derandomize=True)
@given(row_lists(), st.booleans(), st.integers(0, 99))
def test_a_packed_batch_has_the_loss_of_the_padded_one(rows, mask_prompt, seed):
    """Also in its gradient, which a token that looks across a border would change."""
    results = []
    for packed in (False, True):
        model = llama(seed)
        batch = next(batches(rows, len(rows), PAD, block_size=BLOCK, packed=packed,
                             mask_prompt=mask_prompt))  # fmt: skip
        loss = sft_loss(model, batch)
        loss.backward()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    assert abs(results[0][0] - results[1][0]) <= TOLERANCE
    assert_close(results[0][1], results[1][1], atol=TOLERANCE, rtol=1e-4)


def test_batches_cut_long_rows_and_drop_the_last_few():
    rows = [{"input_ids": list(range(n)), "labels": list(range(n))} for n in (3, 20, 4, 2, 6)]
    shapes = [b["input_ids"].shape for b in batches(rows, 2, PAD, block_size=10)]
    assert shapes == [(2, 10), (2, 4)]
    shapes = [b["input_ids"].shape for b in batches(rows, 2, PAD, block_size=10, packed=True)]
    assert shapes == [(2, 10), (1, 6)]


# --- no document sees another -------------------------------------------------------------------

FAMILIES = {
    "GPT-2": transformers.GPT2LMHeadModel,
    "BLOOM": transformers.BloomForCausalLM,
    "Llama": transformers.LlamaForCausalLM,
}


def random_model(data, hf_class):
    """transformers' model with its plain attention, and ours with its weights."""
    hf_model = build(hf_class, {k: data.draw(s) for k, s in SIZES.items()}, data.draw(SEEDS))
    hf_model.set_attn_implementation("eager")
    return from_transformers(hf_model).eval(), hf_model


def documents_of(batch):
    """(row, start, end) of every document and every token of padding."""
    for row, positions in enumerate(batch["position_ids"].tolist()):
        starts = [i for i, p in enumerate(positions) if p == 0]
        yield from zip([row] * len(starts), starts, [*starts[1:], len(positions)], strict=True)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_packed_row_has_the_logits_of_its_documents(family, data):
    model, _ = random_model(data, FAMILIES[family])
    batch = collate(pack(data.draw(row_lists(model.config.vocab_size)), 12), PAD)
    with torch.no_grad():
        packed = model(batch["input_ids"], position_ids=batch["position_ids"]).logits
        for row, start, end in documents_of(batch):
            alone = model(batch["input_ids"][row : row + 1, start:end]).logits[0]
            assert_close(packed[row, start:end], alone, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["GPT-2", "Llama"])
def test_packed_rows_have_the_logits_of_transformers(family):
    """The same positions without a mask; transformers' BLOOM takes none."""
    name = f"transformers.{FAMILIES[family].__name__}"
    with Parity(f"{family}, packed rows", name, TOLERANCE) as parity:

        @settings(max_examples=25, deadline=None, derandomize=True, database=None)
        @given(data=st.data())
        def compare(data):
            ours, theirs = random_model(data, FAMILIES[family])
            batch = collate(pack(data.draw(row_lists(ours.config.vocab_size)), 12), PAD)
            inputs = {k: batch[k] for k in ("input_ids", "position_ids")}
            with torch.no_grad():
                parity.tried()
                parity.compare(ours(**inputs).logits, theirs(**inputs, use_cache=False).logits)

        compare()


def test_what_hides_the_documents():
    """Positions 0 1 0 1 2: the third query sees itself alone, the last the three of its document.
    The second row is one document. With a mask or a cache, positions mean nothing of the kind."""
    positions = torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]])
    seen = document_bias(positions, None, torch.zeros(1)) == 0
    assert seen.shape == (2, 1, 5, 5)
    assert seen[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]
    ]  # fmt: skip
    assert torch.equal(seen[1, 0], torch.ones(5, 5).tril().bool())
    assert document_bias(positions[1:], None, torch.zeros(1)) is None
    model, ids = llama(), torch.arange(5)[None]
    with torch.no_grad():
        plain = model(ids).logits[:, 2]
        packed = model(ids, position_ids=positions[:1]).logits[:, 2]
        for inputs in ({"attention_mask": torch.ones(1, 5)}, {"use_cache": True}):
            whole = model(ids, position_ids=positions[:1], **inputs).logits[:, 2]
            assert (whole - packed).abs().max() > 0.01
    assert (plain - packed).abs().max() > 0.01


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


# --- it learns ----------------------------------------------------------------------------------


def test_the_mask_keeps_the_prompt_from_being_learnt():
    """Prompts 2 x, responses x 0. With the mask the response is learnt and the prompt's x, one of
    eight at random, is worth what it was before; without it the model also learns that prompts
    come from 5 to 12."""
    rows = [{"input_ids": [2, x, x, 0], "labels": [-100, -100, x, 0]} for x in range(5, 13)]
    losses = {}
    for mask_prompt in (True, False):
        model, before = llama(), llama()
        stream = batches(endless(rows, generator(0)), 8, PAD, block_size=BLOCK,
                         mask_prompt=mask_prompt)  # fmt: skip
        train(model, stream, sft_loss, max_steps=60, lr=0.01, schedule="constant", progress=False)
        batch = collate(rows, PAD)
        with torch.no_grad():
            assert sft_loss(model, batch) < 0.2 < sft_loss(before, batch)
            prompt = collate(rows, PAD, mask_prompt=False)
            prompt["labels"][:, 2:] = IGNORE_INDEX
            losses[mask_prompt] = sft_loss(model, prompt).item()
    assert losses[False] < math.log(8) + 0.2 < losses[True]

"""The reward model: loss and last token by hand, one pass beside one a pair, padding, training."""

import copy
import doctest
import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from random_families import build
from random_models import llama, ranking_lists
from torch import nn
from torch.testing import assert_close

from course_lib import reward
from course_lib.checkpoints import load_checkpoint
from course_lib.models import WithScalarHead
from course_lib.reward import (
    accuracy,
    bradley_terry_loss,
    calibration,
    centre,
    collate_rankings,
    expected_calibration_error,
    last_token_scores,
    ranking_loss,
    ranking_to_pairs,
    score_rows,
    scorer,
)
from course_lib.rollout import pad_left
from course_lib.training import train

TOLERANCE = 1e-5
PAD = 1
SMALL = {"vocab_size": 13, "layers": 2, "heads": 3, "width": 4, "inner": 9, "length": 16,
         "tied": False}  # fmt: skip
MODELS = ["Llama", "GPT2LMHeadModel", "LlamaForCausalLM", "BloomForCausalLM"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(name: str, **changes) -> WithScalarHead:
    """Our Llama or a random model over there, with a head that says something."""
    trunk = llama() if name == "Llama" else build(getattr(transformers, name), SMALL, 0, **changes)
    return WithScalarHead(trunk, 0.5, generator(0)).eval()


class Table(nn.Module):
    """The scalar of a token is its number in a table, whatever stands before it."""

    def __init__(self, scores):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores, dtype=torch.float32))
        self.read, self.masks = [], []

    def forward(self, input_ids, attention_mask=None):
        self.read.append(input_ids.tolist())
        self.masks.append(attention_mask.tolist())
        return self.scores[input_ids]


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(reward, extraglobs={"torch": torch})
    assert result.attempted >= 6 and not result.failed


# --- the loss -----------------------------------------------------------------------------------


def test_the_loss_by_hand():
    """-log σ(1) = log(1 + 1/e) = .3133; the sign turned gives 1.3133. σ(log 3) = 3/4: log(4/3)."""
    loss = bradley_terry_loss(torch.tensor([2.0, math.log(3), 0.0]), torch.tensor([1.0, 0.0, 1.0]))
    assert_close(loss, torch.tensor([0.3133, math.log(4 / 3), 1.3133]), atol=1e-4, rtol=0)


def test_equal_scores_cost_log_2():
    """[1, 0] beside [1, 0]: .6931 each. (2, 1) minus (2,) makes 2 · 2 leads, 0, 1, -1, 0, and the
    mean (2 · .6931 + .3133 + 1.3133)/4 = .7532: refused."""
    scores = torch.tensor([1.0, 0.0])
    assert_close(bradley_terry_loss(scores, scores), torch.full((2,), math.log(2)))
    for chosen, rejected in ((scores[:, None], scores), (scores, scores[:, None]),
                             (scores[:, None], scores[:, None])):  # fmt: skip
        with pytest.raises(ValueError, match=r"must both be \(B,\)"):
            bradley_terry_loss(chosen, rejected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_loss_is_finite_at_any_magnitude(dtype):
    """A lead of -100 costs 100, with gradient -1; log(σ(-100)) is -inf in float32 and its gradient
    nan. A lead of 100 costs nothing, with gradient 0."""
    chosen = torch.tensor([0.0, 100.0], dtype=dtype, requires_grad=True)
    loss = bradley_terry_loss(chosen, torch.tensor([100.0, 0.0], dtype=dtype))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.tolist() == pytest.approx([100.0, 0.0], abs=1e-6)
    loss.sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-1.0, 0.0], abs=1e-6)
    far = bradley_terry_loss(torch.tensor([-1e37]), torch.tensor([1e37]))
    assert far.item() == pytest.approx(2e37)


def test_the_gradient_is_the_probability_of_the_wrong_choice():
    """∂loss/∂r_w = -(1 - σ(r_w - r_l)) = -1/4 at odds of 3, and +1/4 for r_l."""
    chosen = torch.tensor([math.log(3)], requires_grad=True)
    rejected = torch.zeros(1, requires_grad=True)
    bradley_terry_loss(chosen, rejected).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.25) and rejected.grad.item() == pytest.approx(
        0.25
    )


def test_a_margin_is_what_the_lead_must_exceed():
    """A lead of 3 with margin 2 costs as much as a lead of 1, .3133; added instead, as a lead of 5,
    .0067. One number serves all pairs."""
    chosen, rejected = torch.tensor([3.0, 3.0]), torch.zeros(2)
    loss = bradley_terry_loss(chosen, rejected, margin=torch.tensor([2, 4]))
    assert_close(loss, torch.tensor([0.3133, 1.3133]), atol=1e-4, rtol=0)
    assert_close(bradley_terry_loss(chosen, rejected, margin=2.0), loss[[0, 0]])


def test_centring_is_of_the_sum():
    """Scores 2 and 1: (2 + 1)² = 9 beside the .3133; of the difference it would be 1. Scores 1 and
    -1 are centred."""
    chosen, rejected = torch.tensor([2.0, 1.0]), torch.tensor([1.0, -1.0])
    plain = bradley_terry_loss(chosen, rejected)
    more = bradley_terry_loss(chosen, rejected, centring=1.0) - plain
    assert_close(more, torch.tensor([9.0, 0.0]), atol=1e-5, rtol=0)
    tenth = bradley_terry_loss(chosen, rejected, centring=0.1, margin=1.0)
    assert_close(tenth, torch.tensor([math.log(2) + 0.9, 0.3133]), atol=1e-4, rtol=0)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=2), st.floats(-50, 50))
def test_a_shift_of_all_scores_changes_the_centring_alone(scores, shift):
    chosen, rejected = torch.tensor(scores, dtype=torch.float64)[:, None]
    loss = bradley_terry_loss(chosen, rejected)
    assert_close(bradley_terry_loss(chosen + shift, rejected + shift), loss, atol=1e-10, rtol=0)
    both = bradley_terry_loss(rejected, chosen) - loss  # log σ(-x) = log σ(x) - x
    assert_close(both, chosen - rejected, atol=1e-10, rtol=0)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("chosen", "rejected", "margin", "error", "message"),
    [
        ([NAN, 1.0], [0.0, 0.0], None, FloatingPointError, r"chosen_scores must be finite.*1 of 2"),
        ([1.0], [INF], None, FloatingPointError, "rejected_scores must be finite"),
        ([1.0], [0.0], NAN, FloatingPointError, "margin must be finite"),
        ([1.0, 2.0], [0.0], None, ValueError, r"\(B,\).*\(2,\) and \(1,\)"),
        ([], [], None, ValueError, "at least one pair"),
        (1.0, 0.0, None, ValueError, r"\(B,\)"),
        ([1.0, 2.0], [0.0, 0.0], [1.0], ValueError, "one number or"),
        ([1.0, 2.0], [0.0, 0.0], [[1.0], [1.0]], ValueError, "one number or"),
    ],
)
def test_scores_that_make_no_pairs_are_told(chosen, rejected, margin, error, message):
    with pytest.raises(error, match=message):
        bradley_terry_loss(torch.tensor(chosen), torch.tensor(rejected),
                           margin=None if margin is None else torch.tensor(margin))  # fmt: skip


# --- the last token -----------------------------------------------------------------------------


def test_the_last_token_is_found_by_the_mask_and_on_any_side():
    """Padded on the left, 0 0 0 1 1: the fifth, 5; the sum of the mask minus 1 points at the
    second, 2. On the right it is the second. A hole is not the end."""
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).expand(3, 5)
    mask = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 1, 0]])
    assert last_token_scores(scores, mask).tolist() == [5, 2, 4]
    assert last_token_scores(scores, mask.bool()).tolist() == [5, 2, 4]


def test_the_last_token_where_the_end_token_also_pads():
    """ids 5 6 2 7 2 2, of which the last is padding: 4, the end token that was written. Found from
    the ids it would be 1, before the first 2, or 3, before the last run of them."""
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    assert last_token_scores(torch.arange(6.0)[None], mask).item() == 4
    model, rows = model_of("Llama"), [[5, 6, 2, 7, 2], [5, 6, 2, 7, 2, 2]]
    with torch.no_grad():
        alone = [model(torch.tensor([row]))[0, -1].item() for row in rows]
    assert score_rows(model, rows, pad_token_id=2).tolist() == pytest.approx(alone, abs=TOLERANCE)
    assert abs(alone[0] - alone[1]) > 0.01


def test_the_gradient_goes_to_the_last_token_alone():
    scores = torch.zeros(2, 3, requires_grad=True)
    last_token_scores(scores, torch.tensor([[1, 1, 0], [0, 1, 1]])).sum().backward()
    assert scores.grad.tolist() == [[0, 1, 0], [0, 0, 1]]


def test_masks_without_a_token_or_of_another_shape_are_told():
    with pytest.raises(ValueError, match=r"Rows \[1\] have no token"):
        last_token_scores(torch.zeros(2, 3), torch.tensor([[1, 0, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        last_token_scores(torch.zeros(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        last_token_scores(torch.zeros(2, 3, 1), torch.ones(2, 3, 1))


# --- scores of rows -----------------------------------------------------------------------------

ROWS = [[3, 1, 4], [1, 5, 9, 2, 6], [5], [3, 5, 8, 9], [7, 9, 3, 2, 3, 8]]


@pytest.mark.parametrize("name", MODELS)
def test_scores_do_not_depend_on_padding_order_or_batches(name):
    """Each row read alone, without padding; in batches of any size; padded on the left."""
    model = model_of(name)
    with torch.no_grad():
        alone = torch.stack([model(torch.tensor([row]))[0, -1] for row in ROWS])
        ids, mask = pad_left(ROWS, PAD)
        left = last_token_scores(model(ids, attention_mask=mask), mask)
    assert alone.std() > 0.1
    assert_close(left, alone, atol=TOLERANCE, rtol=0)
    for size in (1, 2, 3, 128):
        found = score_rows(model, ROWS, PAD, batch_size=size)
        assert_close(found, alone, atol=TOLERANCE, rtol=0)
    assert not found.requires_grad and found.dtype == torch.float32


def test_rows_are_scored_without_dropout_and_the_mode_comes_back():
    model = model_of("GPT2LMHeadModel", resid_pdrop=0.5, embd_pdrop=0.5)
    want = score_rows(model, ROWS, PAD)
    model.train()
    assert_close(score_rows(model, ROWS, PAD), want)
    assert model.training and model.model.transformer.drop.training


@pytest.mark.parametrize("rows", [[], [[]], [[3], []]])
def test_no_rows_and_empty_rows_are_told(rows):
    with pytest.raises(ValueError, match="at least one token"):
        score_rows(model_of("Llama"), rows, PAD)


def test_a_scorer_reads_prompts_and_responses():
    """A table of scores: the last token of the response, 7 or 8, says 0.7 or 0.8, and what was read
    is prompt and response, the shorter row first."""
    model = Table([i / 10 for i in range(10)])
    score = scorer(model, PAD)
    assert_close(score([[2, 3], [2]], [[5, 7], [8]]), torch.tensor([0.7, 0.8]))
    assert model.read == [[[2, 8, 1, 1], [2, 3, 5, 7]]]
    assert model.masks == [[[1, 1, 0, 0], [1, 1, 1, 1]]]
    for prompts, responses in (([[2]], [[5], [6]]), ([[2]], [[]])):
        with pytest.raises(ValueError, match="one response a prompt"):
            score(prompts, responses)


def test_scores_that_are_not_finite_are_told():
    with pytest.raises(FloatingPointError, match="scores must be finite.*1 of 2"):
        scorer(Table([0.0, NAN, 1.0]), 0)([[2], [2]], [[1], [2]])


def test_a_centred_model_gives_the_rows_a_mean_of_0_and_the_same_order():
    model = model_of("GPT2LMHeadModel")
    before = score_rows(model, ROWS, PAD)
    centre(model, before.mean())
    after = score_rows(model, ROWS, PAD)
    assert abs(before.mean()) > 0.01 and abs(after.mean()) < 1e-6
    assert_close(after, before - before.mean(), atol=TOLERANCE, rtol=0)
    with pytest.raises(FloatingPointError, match="mean must be finite"):
        centre(model, NAN)
    assert_close(score_rows(model, ROWS, PAD), after)


# --- all pairs of a ranking ---------------------------------------------------------------------

# Tokens 2, 3, 4, 5 score 0, log 3, 2 log 3, 3 log 3: neighbours have odds of 3 to 1.
LOG3 = math.log(3)
THIRDS = [0.0, 0.0, 0.0, LOG3, 2 * LOG3, 3 * LOG3]


def test_each_ranking_counts_once():
    """a: 4 before 3 before 2, leads log 3, log 3, log 9, probabilities 3/4, 3/4, 9/10. b: 2 before
    3, 1/4. The mean of the rankings' means; over all four pairs together b would count half as
    much."""
    batch = collate_rankings([[([4], 0), ([3], 1), ([2], 2)], [([3], 1), ([2], 0)]], PAD)
    loss, numbers = ranking_loss(Table(THIRDS), batch)
    a = (2 * math.log(4 / 3) + math.log(10 / 9)) / 3
    assert loss.item() == pytest.approx((a + math.log(4)) / 2)
    assert loss.count == 2
    assert numbers["accuracy"].item() == pytest.approx((1 + 0) / 2)
    assert numbers["margin"].item() == pytest.approx((4 / 3 * LOG3 - LOG3) / 2)
    assert numbers["score"].item() == pytest.approx((LOG3 + LOG3 / 2) / 2)


def test_ties_make_no_pair_and_absent_responses_none_either():
    """4 before 3 and 2, which tie: log 3 and log 9. Beside it a ranking of two, so that one place
    is absent: rank -1 would be better than all."""
    batch = collate_rankings([[([3], 1), ([4], 0), ([2], 1)], [([4], 0), ([3], 3)]], PAD)
    loss, _ = ranking_loss(Table(THIRDS), batch)
    a = (math.log(4 / 3) + math.log(10 / 9)) / 2
    assert loss.item() == pytest.approx((a + math.log(4 / 3)) / 2)


def test_equal_scores_are_not_right():
    batch = collate_rankings([[([2], 0), ([2, 2], 1)]], PAD)
    assert ranking_loss(Table(THIRDS), batch)[1]["accuracy"] == 0


def test_a_margin_grows_with_the_ranks_between():
    """5 before 3 at ranks 0 and 2 lead by log 9; a margin of log 3 a rank leaves 0: log 2. With 1
    and 2 the lead is log 9 - log 3: log(4/3). Centring: (3 + 1)² log² 3 a pair."""
    model = Table(THIRDS)
    for ranks, want in (((0, 2), math.log(2)), ((1, 2), math.log(4 / 3))):
        batch = collate_rankings([[([5], ranks[0]), ([3], ranks[1])]], PAD)
        assert ranking_loss(model, batch, margin=LOG3)[0].item() == pytest.approx(want)
    more = ranking_loss(model, batch, centring=0.5)[0] - ranking_loss(model, batch)[0]
    assert more.item() == pytest.approx(0.5 * (4 * LOG3) ** 2, abs=1e-5)


def test_one_pass_reads_every_response_once():
    """Four and two responses: six rows, and none of the two that are absent."""
    model = Table(THIRDS)
    ranking_loss(model, collate_rankings(
        [[([2, 5], 0), ([4], 1), ([3], 2), ([2], 3)], [([3, 3], 0), ([4, 2], 1)]], PAD
    ))  # fmt: skip
    assert model.read == [[[2, 5], [4, 1], [3, 1], [2, 1], [3, 3], [4, 2]]]
    assert model.masks == [[[1, 1], [1, 0], [1, 0], [1, 0], [1, 1], [1, 1]]]


def slow_ranking_loss(model, rankings, margin, centring) -> torch.Tensor:
    """A pass for every response of every pair, without padding: the reference."""
    means = []
    for ranking in rankings:
        places = sorted({rank for _, rank in ranking})
        tiers = [frozenset((tuple(row), rank) for row, rank in ranking if rank == place)
                 for place in places]  # fmt: skip
        losses = []
        for (w, rank_w), (l, rank_l) in ranking_to_pairs(tiers):  # noqa: E741
            lead = model(torch.tensor([w]))[0, -1] - model(torch.tensor([l]))[0, -1]
            both = model(torch.tensor([w]))[0, -1] + model(torch.tensor([l]))[0, -1]
            loss = (1 + (margin * (rank_l - rank_w) - lead).exp()).log() + centring * both**2
            losses.append(loss)
        means.append(sum(losses) / len(losses))
    return sum(means) / len(means)


@pytest.mark.parametrize("name", MODELS)
def test_one_pass_is_equal_to_one_a_pair(name):
    """Losses and gradients, on random rankings of different lengths with ties."""
    model = model_of(name)

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(ranking_lists(), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.01]))
    def compare(rankings, margin, centring):
        fast, _ = ranking_loss(model, collate_rankings(rankings, PAD), margin=margin,
                               centring=centring)  # fmt: skip
        slow = slow_ranking_loss(model, rankings, margin, centring)
        assert_close(fast, slow, atol=TOLERANCE, rtol=0)
        parts = [p for p in model.parameters() if p.requires_grad]
        for ours, theirs in zip(torch.autograd.grad(fast, parts, allow_unused=True),
                                torch.autograd.grad(slow, parts, allow_unused=True)):  # fmt: skip
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)

    compare()


def test_a_batch_without_a_pair_is_told():
    batch = collate_rankings([[([4], 0), ([3], 1)]], PAD)
    batch["ranks"][:] = 0
    with pytest.raises(ValueError, match="no pair"):
        ranking_loss(Table(THIRDS), batch)


# --- training -----------------------------------------------------------------------------------


def drawn_rankings(count: int, seed: int) -> list[list[tuple[list[int], int]]]:
    """Four responses of one to five tokens to a prompt; the more sevens, the better."""
    g, rankings = generator(seed), []
    while len(rankings) < count:
        prompt = torch.randint(2, 13, (2,), generator=g).tolist()
        lengths = torch.randint(1, 6, (4,), generator=g).tolist()
        rows = [torch.randint(5, 9, (n,), generator=g).tolist() for n in lengths]
        sevens = [row.count(7) for row in rows]
        if len(set(sevens)) > 1:
            rankings.append([(prompt + row, max(sevens) - n) for row, n in zip(rows, sevens)])
    return rankings


def pair_scores(model, rankings) -> tuple[torch.Tensor, torch.Tensor]:
    chosen, rejected = [], []
    for ranking in rankings:
        scores = score_rows(model, [row for row, _ in ranking], PAD).tolist()
        for i, (_, rank) in enumerate(ranking):
            for j, (_, other) in enumerate(ranking):
                if rank < other:
                    chosen.append(scores[i])
                    rejected.append(scores[j])
    return torch.tensor(chosen), torch.tensor(rejected)


@pytest.mark.parametrize("name", ["Llama", "GPT2LMHeadModel"])
def test_a_model_learns_what_is_preferred(name):
    """From a head of zeros, where every pair is a tie and none right, to more than nine of ten
    pairs that it has not seen; the policy that it was copied from stays as it was."""
    policy = model_of(name).model
    before = copy.deepcopy(policy.state_dict())
    model = WithScalarHead(copy.deepcopy(policy))
    held_out = drawn_rankings(60, seed=1)
    assert accuracy(*pair_scores(model, held_out)) == 0
    rankings = drawn_rankings(480, seed=0)
    stream = [collate_rankings(rankings[i : i + 8], PAD) for i in range(0, len(rankings), 8)] * 3
    history = train(model, stream, ranking_loss, max_steps=180, lr=5e-3, progress=False)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert {"accuracy", "margin", "score"} <= history[0].keys()
    assert accuracy(*pair_scores(model, held_out)) > 0.9
    assert all(torch.equal(x, before[name]) for name, x in policy.state_dict().items())


def test_batches_of_a_step_count_by_their_rankings():
    """Three rankings in one batch and one in the other are the same step as all four together."""
    rankings, runs = drawn_rankings(4, seed=2), []
    for parts in ([rankings], [rankings[:3], rankings[3:]]):
        model = model_of("Llama")
        history = train(model, [collate_rankings(part, PAD) for part in parts], ranking_loss,
                        optimizer=torch.optim.SGD(model.parameters(), 0.1), max_steps=1,
                        gradient_accumulation=len(parts), max_grad_norm=1e9)  # fmt: skip
        runs.append((history[0], model.state_dict()))
    (one, weights), (two, other_weights) = runs
    for name in ("loss", "accuracy", "margin", "score", "grad_norm"):
        assert one[name] == pytest.approx(two[name], abs=1e-4), name
    for name, tensor in weights.items():
        assert_close(tensor, other_weights[name], atol=TOLERANCE, rtol=0)


def test_scores_that_are_not_finite_stop_training_and_the_checkpoint_stays(tmp_path):
    """After the second step somebody puts nan into the head: the third ends in an error, and the
    checkpoint is that of the second."""
    model = model_of("Llama")

    def stream():
        for step, ranking in enumerate(drawn_rankings(4, seed=3)):
            if step == 2:
                model.head.weight.data[0] = NAN
            yield collate_rankings([ranking], PAD)

    with pytest.raises(FloatingPointError, match="_scores must be finite"):
        train(model, stream(), ranking_loss, max_steps=4, checkpoint_dir=tmp_path,
              checkpoint_every=1, progress=False)  # fmt: skip
    state = load_checkpoint(tmp_path)
    assert state["step"] == 2 and len(state["history"]) == 2
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


# --- figures ------------------------------------------------------------------------------------


def test_ties_do_not_count_as_right():
    """Right, tie, wrong, right: 2/4. Ties as half right would make .625, as right .75."""
    chosen, rejected = torch.tensor([2.0, 1.0, 0.0, 5.0]), torch.tensor([1.0, 1.0, 1.0, -5.0])
    assert accuracy(chosen, rejected) == 0.5
    with pytest.raises(ValueError, match=r"\(B,\)"):
        accuracy(chosen, rejected[:2])
    with pytest.raises(FloatingPointError, match="finite"):
        accuracy(chosen, rejected * NAN)


def test_calibration_by_hand():
    """Probabilities .1 three times, one of them won, 1 (a lead of 100) once, 0 once: three bins of
    twenty have pairs. Distances .233, 0 and 0: .7/5 pairs."""
    tenth = -math.log(9)
    margins = torch.tensor([tenth, 100.0, tenth, tenth, -100.0])
    rows = calibration(margins, torch.tensor([True, True, False, False, False]), bins=20)
    assert [row[2] for row in rows] == [1, 3, 1]
    assert [row[0] for row in rows] == pytest.approx([0.0, 0.1, 1.0])
    assert [row[1] for row in rows] == pytest.approx([0.0, 1 / 3, 1.0])
    assert expected_calibration_error(rows) == pytest.approx(3 * (1 / 3 - 0.1) / 5)
    last = calibration(torch.tensor([100.0, math.log(19)]), torch.tensor([1, 0]), bins=10)
    assert last == [(pytest.approx((1 + 0.95) / 2), 0.5, 2)]  # 1 itself is no bin of its own


def test_a_model_that_is_right_is_calibrated_and_a_surer_one_is_not():
    """20,000 pairs won as often as the margins say: of ten bins of some 2,000, each share strays by
    about .01. Margins three times as large are off by ten times that."""
    g = generator(0)
    margins = 2 * torch.randn(20_000, generator=g, dtype=torch.float64)
    wins = torch.rand(20_000, generator=g, dtype=torch.float64) < margins.sigmoid()
    rows = calibration(margins, wins)
    assert len(rows) == 10 and sum(count for *_, count in rows) == 20_000
    assert expected_calibration_error(rows) < 0.02
    assert expected_calibration_error(calibration(3 * margins, wins)) > 0.1


@pytest.mark.parametrize(
    ("margins", "wins", "bins", "error"),
    [
        ([], [], 10, ValueError),
        ([1.0], [1.0, 0.0], 10, ValueError),
        ([1.0], [2.0], 10, ValueError),
        ([1.0], [1.0], 0, ValueError),
        ([NAN], [1.0], 10, FloatingPointError),
    ],
)
def test_what_has_no_calibration_is_told(margins, wins, bins, error):
    with pytest.raises(error):
        calibration(torch.tensor(margins), torch.tensor(wins), bins)

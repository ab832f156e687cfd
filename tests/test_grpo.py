"""GRPO's mathematics: numbers derived by hand, slow loops, invariants, bad input."""

import doctest
import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from course_lib import grpo
from course_lib.grpo import (
    NORMALISATIONS,
    GRPOSettings,
    aggregate,
    dead_groups,
    dead_share,
    group_advantages,
    grpo_loss,
    net_scores,
    token_losses,
)
from course_lib.ops import IGNORE_INDEX
from course_lib.training import train


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(grpo)
    assert result.attempted >= 11 and not result.failed


# --- advantages ---------------------------------------------------------------------------------


def test_both_standard_deviations_by_hand():
    """{1, 0}: mean .5, distances ±.5; population √.25 = .5, so ±1; Bessel √.5 = .7071, so ±.7071.
    {1, 1, 2}: mean 4/3, population √(2/9) = .4714: -.7071, -.7071, 1.4142; Bessel √(1/3) = .5774:
    -.5774, -.5774, 1.1547. Undivided: -1/3, -1/3, 2/3."""
    two, three = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0, 2.0])
    for std, pair, triple in (
        ("population", [1, -1], [-0.7071, -0.7071, 1.4142]),
        ("bessel", [0.7071, -0.7071], [-0.5774, -0.5774, 1.1547]),
        (None, [0.5, -0.5], [-0.3333, -0.3333, 0.6667]),
    ):
        assert group_advantages(two, 2, std).tolist() == pytest.approx(pair, abs=1e-4)
        assert group_advantages(three, 3, std).tolist() == pytest.approx(triple, abs=1e-4)


def test_groups_stand_in_succession():
    """Groups {1, 0} and {5, 3}: each ±1. Taken by columns {1, 5} and {0, 3} all would have other
    signs; over all four the first would be negative."""
    assert group_advantages(torch.tensor([1.0, 0, 5, 3]), 2).tolist() == [1, -1, 1, -1]


@pytest.mark.parametrize("std", ["population", "bessel", None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scores_equal_up_to_rounding_have_no_advantage(std, dtype):
    """.1 + .2 is .30000000000000004: a group of .3 and that would have ±1 (-1.41 and 0 with other
    guards), and so would 100 times both in float32. Twice the same is 0, too, not 0 / 0."""
    for factor in (1, 100, 1e6):
        scores = torch.tensor([0.3, 0.1 + 0.2, 0.5, 0.5], dtype=dtype) * factor
        assert group_advantages(scores, 2, std).tolist() == [0, 0, 0, 0]
        assert dead_groups(scores, 2).all()
    real = torch.tensor([0.3, 0.3001, 0.5, 0.5], dtype=dtype)
    assert dead_groups(real, 2).tolist() == [False, True]
    assert group_advantages(real, 2, std)[1] > 0


def test_what_trl_adds_to_the_deviation():
    """{1, 0}, Bessel: .5 / (.7071 + .1)."""
    found = group_advantages(torch.tensor([1.0, 0.0]), 2, "bessel", eps=0.1)
    assert found[0].item() == pytest.approx(0.5 / 0.80711, abs=1e-4)


@pytest.mark.parametrize(
    ("scores", "size", "message"),
    [(torch.ones(3), 1, "at least 2: a response alone"), (torch.ones(3), 2, r"groups of 2.*\(3,\)"),
     (torch.ones(4, 1), 2, r"got \(4, 1\)"), (torch.ones(0), 2, r"got \(0,\)"),
     (torch.tensor([1.0, math.nan]), 2, r"rows \[1\] are not finite"),
     (torch.tensor([-math.inf, 1.0]), 2, r"rows \[0\] are not finite")],
)  # fmt: skip
def test_scores_that_do_not_fit_are_refused(scores, size, message):
    for function in (group_advantages, dead_groups):
        with pytest.raises(ValueError, match=message):
            function(scores, size)


def test_an_unknown_deviation_is_refused():
    with pytest.raises(ValueError, match="std must be one of.*got 'sample'"):
        group_advantages(torch.ones(2), 2, "sample")


score_lists = st.integers(2, 5).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(-10, 10, width=32), min_size=size, max_size=size), min_size=1, max_size=4
    )
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(score_lists, st.floats(0.5, 4), st.floats(-5, 5))
def test_advantages_are_those_of_the_slow_loop(groups, scale, shift):
    """Group by group in plain numbers: mean 0, deviation 1, or 0 where dead. Divided by the
    deviation they do not change with the scores' unit and zero; undivided with the unit alone. The
    order of the groups and within a group is that of the scores."""
    G, flat = len(groups[0]), [x for group in groups for x in group]
    scores = torch.tensor(flat, dtype=torch.float64)
    for std in ("population", "bessel", None):
        found = group_advantages(scores, G, std).view(-1, G)
        for group, line, dead in zip(groups, found.tolist(), dead_groups(scores, G).tolist()):
            mean = math.fsum(group) / G
            n = G - 1 if std == "bessel" else G
            spread = math.sqrt(math.fsum((x - mean) ** 2 for x in group) / n) if std else 1.0
            assert dead == (max(group) - min(group) <= 1e-6 * max(1, *map(abs, group)))
            want = [0.0] * G if dead else [(x - mean) / spread for x in group]
            assert line == pytest.approx(want, abs=1e-6)
        if dead_groups(scores, G).any():
            continue  # another zero may wake what is nearly equal
        moved = group_advantages(scale * scores + shift, G, std)
        if not dead_groups(scale * scores + shift, G).any():
            assert_close(moved.view(-1, G), found * (1 if std else scale), atol=1e-5, rtol=1e-5)
        backwards = group_advantages(scores.flip(0), G, std)
        assert_close(backwards, found.flatten().flip(0), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.bfloat16, torch.float64])
def test_scores_may_be_of_any_type(dtype):
    found = group_advantages(torch.tensor([1, 0]).to(dtype), 2)
    assert found.tolist() == [1, -1]
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_the_share_of_dead_groups_by_counting():
    """p .3, G 4: .3⁴ + .7⁴ = .0081 + .2401 = .2482; and by all 2⁴ groups, each with its
    probability. A p of 0 or 1 is always dead."""
    p, G = 0.3, 4
    groups = list(product([1.0, 0.0], repeat=G))
    dead = dead_groups(torch.tensor(groups).flatten(), G).tolist()
    counted = sum(math.prod(p if x else 1 - p for x in group)
                  for group, is_dead in zip(groups, dead) if is_dead)  # fmt: skip
    found = dead_share(torch.tensor([p, 0.0, 1.0], dtype=torch.float64), G).tolist()
    assert counted == pytest.approx(0.2482) and found == pytest.approx([0.2482, 1, 1])


def test_what_the_advantages_are_taken_of():
    """Scores 2 and 3, the second cut off, penalty 1.5: 2 and 1.5. With kl_coef .5 and log-ratios
    -1 + 3 = 2 and -4 + 3 = -1: 2 - 1 and 1.5 + .5. Without weights nothing is asked of the KL."""
    scores, ended = torch.tensor([2.0, 3.0]), torch.tensor([True, False])
    logps, ref = torch.tensor([-1.0, -4.0]), torch.tensor([-3.0, -3.0])
    assert net_scores(scores, ended).tolist() == [2, 3]
    assert net_scores(scores, ended, truncation_penalty=1.5).tolist() == [2, 1.5]
    both = net_scores(scores, ended, logps, ref, truncation_penalty=1.5, kl_coef=0.5)
    assert both.tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"ended \(2, 1\)"):
        net_scores(scores, ended[:, None])
    with pytest.raises(ValueError, match=r"ref_logps \(1,\)"):
        net_scores(scores, ended, logps, ref[:1], kl_coef=0.5)


# --- the loss of a token ------------------------------------------------------------------------


def test_each_token_has_a_ratio_of_its_own():
    """Ratios 1.3 and .9, ε .2, A 1: the mean of -1.2 and -.9 is -1.05. One ratio for the response,
    1.3 · .9 = 1.17, would give -1.17."""
    losses = token_losses(row(1.3, 0.9).log(), torch.zeros(1, 2), torch.ones(1))
    assert losses.mean().item() == pytest.approx(-1.05)


def test_clipping_may_leave_more_room_upwards():
    """ε .2 and ε' .28, ratios 1.25, 1.5, .7, A 1: -1.25, -1.28, -.7. A -1: 1.25, 1.5, and .8 for .7
    is clipped below. With ε' below as well it would be .72."""
    logprobs = row(1.25, 1.5, 0.7).log()
    logprobs = torch.cat([logprobs, logprobs])
    found = token_losses(logprobs, torch.zeros(2, 3), torch.tensor([1.0, -1.0]), 0.2, 0.28)
    assert_close(found, torch.tensor([[-1.25, -1.28, -0.7], [1.25, 1.5, 0.8]]))
    plain = token_losses(logprobs, torch.zeros(2, 3), torch.tensor([1.0, -1.0]), None)
    assert_close(plain, torch.tensor([[-1.25, -1.5, -0.7], [1.25, 1.5, 0.7]]))


def test_an_advantage_is_one_a_response():
    """(B, 1), (T-1,) and (B, T-1) would be broadcast somehow."""
    two = torch.zeros(2, 3)
    for shape in ((2, 1), (3,), (2, 3), ()):
        with pytest.raises(ValueError, match=r"advantages must be \(2,\), one a response"):
            token_losses(two, two, torch.zeros(shape))


# --- aggregation --------------------------------------------------------------------------------

LOSSES, MASK = torch.tensor([[2.0, math.nan, 7], [1, 1, 1]]), torch.tensor([[1, 0, 0], [1, 1, 1]])
BY_HAND = {"sequence": 1.5, "token": 1.25, "constant": 0.5}


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_the_three_normalisations_by_hand(normalise):
    """Token losses [2] and [1 1 1]: (2 + 1) / 2 = 1.5; 5 / 4 = 1.25; with L = 5 it is 5 / 10 = .5.
    NaN where the mask keeps nothing changes none."""
    loss = aggregate(LOSSES, MASK, normalise, 5)
    assert loss.item() == pytest.approx(BY_HAND[normalise])
    assert loss.count == {"sequence": 2, "token": 4, "constant": 10}[normalise]


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_two_micro_batches_are_one_step(normalise):
    """The same two responses, a micro-batch each, by ``training.train``: per token 5 / 4 again,
    where the mean of the means is (2 + 1) / 2 = 1.5, and their sum over twice the count .625. The
    gradient by a factor 1 of all losses is the loss itself, and SGD takes it off the weight."""
    steps = []
    for parts in ([[0, 1]], [[0], [1]], [[1], [0]]):
        model = torch.nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            model.weight.fill_(1.0)
        batches = [{"losses": LOSSES[rows], "mask": MASK[rows]} for rows in parts]

        def loss_fn(model, batch):
            losses = batch["losses"].nan_to_num(9) * model.weight
            return aggregate(losses, batch["mask"], normalise, 5), {}

        history = train(model, batches, loss_fn, max_steps=1, gradient_accumulation=len(parts),
                        optimizer=torch.optim.SGD(model.parameters(), 0.1), max_grad_norm=100.0,
                        progress=False)  # fmt: skip
        steps.append((history[0]["loss"], 10 * (1 - model.weight.item())))
    assert steps[0] == pytest.approx((BY_HAND[normalise],) * 2, abs=1e-5)
    for step in steps[1:]:
        assert step == pytest.approx(steps[0], abs=1e-5)


def test_a_response_without_a_token_that_counts_is_no_response():
    """[2] and [] and [1 1 1]: as if the second were not there."""
    losses, mask = torch.cat([LOSSES, LOSSES[1:]]), torch.cat([MASK, torch.zeros(1, 3)])
    for normalise in NORMALISATIONS:
        assert aggregate(losses, mask, normalise, 5).item() == pytest.approx(BY_HAND[normalise])
        nothing = aggregate(losses, torch.zeros(3, 3), normalise, 5)
        assert nothing.item() == 0 and nothing.count == 0


def test_an_aggregation_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="needs a constant above 0, got None"):
        aggregate(LOSSES, MASK, "constant")
    with pytest.raises(ValueError, match="normalise must be one of.*'mean'"):
        aggregate(LOSSES, MASK, "mean")
    with pytest.raises(ValueError, match=r"mask \(2, 2\)"):
        aggregate(LOSSES, MASK[:, :2])


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"epochs": 0}, {"group_size": 1}, {"kl_coef": -0.1}, {"kl_loss_coef": math.inf},
     {"temperature": 0}, {"clip_eps": 0.0}, {"clip_eps_high": -0.1}, {"constant": 0.0},
     {"std": "sample"}, {"normalise": "length"}, {"kl_estimator": "k4"}, {"truncated": "drop"},
     {"dead": "skip"}, {"max_tries": 0}, {"truncation_penalty": math.nan},
     {"minibatch_size": 0}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} must"):
        GRPOSettings(**{"max_new_tokens": 4, "minibatch_size": 2, **change})


def test_settings_do_not_change():
    given_settings = GRPOSettings(4, 2)
    with pytest.raises(AttributeError):
        given_settings.epochs = 3
    with pytest.raises(ValueError, match="clip_eps_high must be None where clip_eps is"):
        GRPOSettings(4, 2, clip_eps=None, clip_eps_high=0.3)
    assert not given_settings.needs_reference
    assert GRPOSettings(4, 2, kl_coef=0.1).needs_reference
    assert GRPOSettings(4, 2, kl_loss_coef=0.1).needs_reference


# --- the loss of a batch ------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """A model whose word 1 has the odds ``odds`` to 1 of word 0 at each position: (B, T)."""

    def __init__(self, odds):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(odds).log())

    def forward(self, input_ids, logits_to_keep=0, **_):
        logits = torch.stack([torch.zeros_like(self.logits), self.logits], dim=-1)  # (B, T, 2)
        return torch.nn.Module.__call__(Out(), logits[:, -logits_to_keep:])


class Out(torch.nn.Module):
    def forward(self, logits):
        self.logits = logits
        return self


def batch_of(old, ref=None, ended=(True, False)) -> dict:
    """Responses 1 1 after the prompt 0, one of one token and one of two; advantages 1 and -1."""
    labels = torch.tensor([[IGNORE_INDEX, 1, IGNORE_INDEX], [IGNORE_INDEX, 1, 1]])
    batch = {
        "input_ids": torch.tensor([[0, 1, 1], [0, 1, 1]]), "labels": labels,
        "attention_mask": torch.ones(2, 3), "position_ids": torch.arange(3).expand(2, 3),
        "response_mask": labels[:, 1:] != IGNORE_INDEX, "old_logprobs": torch.tensor(old).log(),
        "advantages": torch.tensor([1.0, -1.0]), "ended": torch.tensor(ended),
    }  # fmt: skip
    return batch if ref is None else batch | {"ref_logprobs": torch.tensor(ref).log()}


OLD = [[0.5, 1.0], [0.5, 0.5]]


def test_the_loss_and_its_metrics_by_hand():
    """Odds 3 : 1, 1 : 1, 3 : 2: p .75 of the first response's token; .5 and .6 of the second's. Old
    p .5 each: ratios 1.5, 1, 1.2. ε .3: losses -1.3, 1, 1.2. Per sequence (-1.3 + 1.1) / 2 = -.1;
    per token .9 / 3 = .3; over 2 · 4, the most tokens, .9 / 8. One in three is outside .7 to 1.3.
    pg_loss is per token in all. approx_kl: k3(old ‖ new) is ratio - 1 - log ratio: .0945, 0, .0177,
    their mean .0374. Entropies .5623, .6931, .6730: .6428."""
    model = Fixed([[3.0, 1, 1], [1, 1.5, 1]])
    for normalise, want in (("sequence", -0.1), ("token", 0.3), ("constant", 0.9 / 8)):
        given_settings = GRPOSettings(4, 2, clip_eps=0.3, normalise=normalise)
        loss, metrics = grpo_loss(given_settings)(model, batch_of(OLD))
        assert loss.item() == pytest.approx(want, abs=1e-5)
        assert {k: float(v) for k, v in metrics.items()} == pytest.approx({
            "pg_loss": 0.3, "entropy": 0.6428, "approx_kl": 0.0374, "clipfrac": 1 / 3,
            "ratio": 3.7 / 3, "ratio_max": 1.5}, abs=1e-4)  # fmt: skip
    loss, _ = grpo_loss(GRPOSettings(9, 2, normalise="constant", constant=3.0, clip_eps=0.3))(
        model, batch_of(OLD)
    )
    assert loss.item() == pytest.approx(0.9 / 6, abs=1e-5)


def test_more_room_upwards_is_counted_so():
    """Ratios 1.5, 1, 1.2, ε .1 and ε' .3: the first is clipped at 1.3, and the third not; with ε
    alone two in three are outside."""
    model = Fixed([[3.0, 1, 1], [1, 1.5, 1]])
    for high, want, outside in ((0.3, (-1.3 + 1.1) / 2, 1 / 3), (None, (-1.1 + 1.1) / 2, 2 / 3)):
        loss, metrics = grpo_loss(GRPOSettings(4, 2, clip_eps=0.1, clip_eps_high=high))(
            model, batch_of(OLD)
        )
        assert loss.item() == pytest.approx(want, abs=1e-5)
        assert metrics["clipfrac"].item() == pytest.approx(outside)
    free = grpo_loss(GRPOSettings(4, 2, clip_eps=None))(model, batch_of(OLD))
    assert free[0].item() == pytest.approx((-1.5 + 1.1) / 2, abs=1e-5) and free[1]["clipfrac"] == 0


@pytest.mark.parametrize(
    ("estimator", "value", "slope"),
    [("k1", -0.2231, 1.0), ("k2", 0.0249, -0.2231), ("k3", 0.0269, -0.25)],
)
def test_the_kl_in_the_loss_by_hand(estimator, value, slope):
    """One token with p .4 (odds 2 : 3) and p_ref .5, A 0: the loss is .7 times the estimator, and
    its gradient by the logit, d log p / d logit = 1 - p = .6, is .7 · .6 · slope."""
    model = Fixed([[2 / 3, 1.0, 1.0]])
    batch = {k: v[:1] for k, v in batch_of([[0.4, 1.0], [1.0, 1.0]], [[0.5, 1], [1, 1]]).items()}
    batch["advantages"] = torch.zeros(1)
    given_settings = GRPOSettings(4, 1, kl_loss_coef=0.7, kl_estimator=estimator)
    loss, metrics = grpo_loss(given_settings)(model, batch)
    assert loss.item() == pytest.approx(0.7 * value, abs=1e-4)
    assert metrics["kl_loss"].item() == pytest.approx(value, abs=1e-4)
    assert metrics["pg_loss"].item() == 0
    loss.backward()
    assert model.logits.grad[0, 0].item() == pytest.approx(0.7 * 0.6 * slope, abs=1e-4)
    # Measured, and without a weight: in the log and not in the loss.
    loss, metrics = grpo_loss(GRPOSettings(4, 1, kl_estimator=estimator))(model, batch)
    assert loss.item() == 0 and metrics["kl_loss"].item() == pytest.approx(value, abs=1e-4)


def test_where_the_gradients_of_the_estimators_point():
    """Policy and reference over three words, every word in the batch with its probability as its
    weight (the rows' means, A 0): k1's gradient is 0; k2's that of KL(p ‖ p_ref), k3's that of
    KL(p_ref ‖ p)."""
    logits = torch.tensor([0.3, -0.2, 1.0], requires_grad=True)
    ref = torch.tensor([0.0, 0.5, 0.1]).log_softmax(0)
    p = logits.log_softmax(0)
    forward = torch.autograd.grad((p.exp() * (p - ref)).sum(), logits, retain_graph=True)[0]
    turned = torch.autograd.grad((ref.exp() * (ref - p)).sum(), logits, retain_graph=True)[0]
    for name, want in (("k1", torch.zeros(3)), ("k2", forward), ("k3", turned)):
        mean = (p.exp().detach() * grpo.ESTIMATORS[name](p, ref)).sum()
        assert_close(torch.autograd.grad(mean, logits, retain_graph=True)[0], want)
    assert (forward - turned).abs().max() > 0.01


@pytest.mark.parametrize(("estimator", "plain"), [("k1", 0.3670), ("k3", 0.1670)])
def test_times_the_ratio_the_gradient_is_that_of_the_kl(estimator, plain):
    """Both words at one place of an old policy with p_old .5 each, one response each, A 0: the mean
    of ratio · k is Σ p k, the KL exactly, and so is its gradient. p .75, p_ref (.1, .9): KL .25 log
    2.5 + .75 log .8333 = .0923; by the logit p (1 - p) (log p/p_ref of word 1 - that of word 0) =
    .1875 · (-.1823 - .9163) = -.2060. Not corrected: k1 (.9163 - .1823) / 2, k3
    (.3163 + .0177) / 2.
    """

    def value_and_slope(corrected):
        model = Fixed([[3.0, 1, 1], [3.0, 1, 1]])
        batch = batch_of([[0.5, 1.0], [0.5, 1.0]], [[0.1, 1.0], [0.9, 1.0]])
        batch["labels"] = torch.tensor([[IGNORE_INDEX, 0, IGNORE_INDEX],
                                        [IGNORE_INDEX, 1, IGNORE_INDEX]])  # fmt: skip
        batch["response_mask"] = batch["labels"][:, 1:] != IGNORE_INDEX
        batch["advantages"] = torch.zeros(2)
        loss, _ = grpo_loss(GRPOSettings(4, 2, kl_loss_coef=1.0, kl_estimator=estimator,
                                         kl_corrected=corrected))(model, batch)  # fmt: skip
        loss.backward()
        return loss.item(), model.logits.grad[:, 0].sum().item()

    assert value_and_slope(True) == pytest.approx((0.0923, -0.2060), abs=1e-4)
    assert value_and_slope(False)[0] == pytest.approx(plain, abs=1e-4)


def test_dead_groups_still_pay_the_kl_in_the_loss():
    """Advantages of 0: the gradient is the KL's alone, and it is not 0."""
    model = Fixed([[3.0, 1, 1], [1, 1.5, 1]])
    batch = batch_of(OLD, [[0.9, 1.0], [0.2, 0.2]]) | {"advantages": torch.zeros(2)}
    for coef in (0.0, 0.1):
        model.zero_grad()
        loss, _ = grpo_loss(GRPOSettings(4, 2, kl_loss_coef=coef))(model, batch)
        loss.backward()
        assert bool(model.logits.grad.any()) == (coef > 0)
    with pytest.raises(ValueError, match="kl_loss_coef is above 0, and the batch has no ref"):
        grpo_loss(GRPOSettings(4, 2, kl_loss_coef=0.1))(model, batch_of(OLD))


def test_a_response_that_was_cut_off_may_be_masked():
    """The second was cut off: what is left is the first one's -1.3, by every normalisation (over a
    constant of 4: -1.3 / 4), and its weights alone have a gradient. Both cut off: nothing."""
    for normalise, want in (("sequence", -1.3), ("token", -1.3), ("constant", -1.3 / 4)):
        model = Fixed([[2.0, 1, 1], [1, 1.5, 1]])
        old = [[2 / 3 / 1.3, 1.0], [0.5, 0.5]]
        loss_fn = grpo_loss(GRPOSettings(4, 2, clip_eps=0.4, normalise=normalise,
                                         truncated="mask"))  # fmt: skip
        loss, metrics = loss_fn(model, batch_of(old))
        assert loss.item() == pytest.approx(want, abs=1e-5)
        assert metrics["ratio"].item() == pytest.approx(1.3)
        loss.backward()
        assert model.logits.grad[0].any() and not model.logits.grad[1].any()
        nothing, _ = loss_fn(model, batch_of(old, ended=(False, False)))
        assert nothing.item() == 0 and nothing.count == 0

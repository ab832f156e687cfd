"""Amount and noise of rankings: measures by hand, and checks that a turned sign fails."""

import math

import pytest
import torch

from course_lib import plotting, rlhf
from course_lib.rlhf import Reply
from course_lib.studies import guests, load, reward_data, tuning
from course_lib.studies.reward_data import STANDARD
from course_lib.world.preferences import Labeller, Question, judge

SEED = 9
INN = Question("inn", "Oakby")
TWO, CLAIM, RUDE, TOO = (
    "The soup was wonderful. The bed was really cosy.",
    "The soup was wonderful. We had a cosy bed.",
    "What a stupid question! The soup was wonderful.",
    "The bed was wonderful. The soup was really cosy.",
)


def reply(text: str, *ids: int) -> Reply:
    return Reply(INN, (1, 2), ids or (3,), text, judge(INN, text))


def test_how_often_labellers_prefer_a_reply():
    """Worth 2 and -0.5: noise 0.5 gives σ(2.5/0.5) = σ(5) = .9933, no noise 1, the mean .9967."""
    labellers = [Labeller(), Labeller(noise=0)]
    chance = reward_data.preferred(labellers, reply(TWO), reply(CLAIM))
    assert chance == pytest.approx((1 / (1 + math.exp(-5)) + 1) / 2)
    assert reward_data.preferred(labellers, reply(CLAIM), reply(TWO)) == pytest.approx(1 - chance)


def test_figures_against_labellers_by_hand():
    """Odds of 3:1, 1:3 and 1:1, and chances .8, .4 and .9. The model names the one of .8, that of
    .6, and none: (.8 + .6 + .5)/3. The best judge has (.8 + .6 + .9)/3. Losses: .8 · log 4/3 + .2 ·
    log 4 = .5074, .4 · log 4 + .6 · log 4/3 = .7271, log 2 = .6931, on average .6426."""
    margins = torch.tensor([3.0, 1 / 3, 1.0]).log()
    found = reward_data.against_labellers(margins, torch.tensor([0.8, 0.4, 0.9]))
    assert found["agrees"] == pytest.approx(1.9 / 3)
    assert found["permitted"] == pytest.approx(2.3 / 3)
    assert found["of what noise permits"] == pytest.approx(1.9 / 2.3)
    assert found["nats"] == pytest.approx(0.6426, abs=1e-4)


def test_a_judge_who_knows_all_chances_has_what_is_permitted():
    chances = torch.tensor([0.8, 0.4, 0.9, 0.5, 0.05], dtype=torch.float64)
    found = reward_data.against_labellers(torch.logit(chances), chances)
    assert found["agrees"] == pytest.approx(found["permitted"])
    assert found["nats"] == pytest.approx(found["least nats"])
    assert found["ece"] == pytest.approx(0, abs=1e-12)


def test_bins_hold_as_many_pairs_and_no_order_of_a_pair():
    """Odds 3, 1/4, 9, 1 say .75, .8 (turned round), .9, .5; preferred are .8, 1 - .4, 1, .7. The
    less sure half says (.5 + .75)/2, and is preferred (.7 + .8)/2; the other .85 and .8."""
    margins = torch.tensor([3.0, 1 / 4, 9.0, 1.0]).double().log()
    chances = torch.tensor([0.8, 0.4, 1.0, 0.7]).double()
    rows = reward_data.reliability(margins, chances, bins=2)
    for row, right in zip(rows, [(0.625, 0.75, 2), (0.85, 0.8, 2)], strict=True):
        assert row == pytest.approx(right)
    turned = reward_data.reliability(-margins[:3], 1 - chances[:3], bins=3)
    as_given = reward_data.reliability(margins[:3], chances[:3], bins=3)
    assert turned == [pytest.approx(row) for row in as_given]


def test_accuracy_on_clean_pairs_leaves_truths_that_tie_and_scores_that_tie_are_wrong():
    """Truths 2, -0.5, -1.5, 2. Four pairs have a better reply: right, wrong, right though the
    better stands second, and a tie of scores: 2/4. The pair of truths 2 and 2 does not count."""
    two, claim, rude, too = map(reply, (TWO, CLAIM, RUDE, TOO))
    pairs = [(two, claim), (two, rude), (rude, claim), (claim, rude), (two, too)]
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0], [9.0, 0.0]])
    assert reward_data.clean_accuracy(pairs, scores) == 0.5


@pytest.fixture
def few(monkeypatch):
    """Forty rankings of four given replies, of which two tie in truth."""
    texts = (TWO, CLAIM, RUDE, TOO)
    rankings = [[(reply(text, i), rank) for i, (text, rank) in enumerate(zip(texts, (0, 1, 2, 0)))]
                for _ in range(40)]  # fmt: skip
    monkeypatch.setattr(guests, "held_out_rankings", lambda seed: rankings)
    monkeypatch.setattr(guests, "rankings_of", lambda seed, count: rankings)
    return rankings


def test_every_pair_is_asked_in_either_order(few):
    pairs = reward_data.held_out_pairs(0)
    assert len(pairs) == 40 * 6 and pairs == reward_data.held_out_pairs(0)
    assert all(a is not b and a.question == b.question for a, b in pairs)
    first = sum(a.truth > b.truth for a, b in pairs) / sum(a.truth != b.truth for a, b in pairs)
    assert 0.4 < first < 0.6


def test_other_noise_ranks_the_same_replies_anew(few):
    assert reward_data.labelled(0, 40, reward_data.NOISE) is few
    noisy, clean = (reward_data.labelled(0, 40, noise) for noise in (2.0, 0.0))
    assert [{r.text for r, _ in ranking} for ranking in noisy] == [
        {r.text for r, _ in ranking} for ranking in few]  # fmt: skip
    wrong = [sum(a.truth < b.truth for a, b in guests.pairs_of(rankings))
             for rankings in (noisy, clean)]  # fmt: skip
    assert wrong[0] > wrong[1]


# --- controls -----------------------------------------------------------------------------------


def outside(setting, measure, value):
    low, high = load("reward_data").interval_for_a_new_seed(setting, measure)
    return not low <= value <= high


@pytest.fixture(scope="module")
def turned():
    """Measures of a reward model that learnt, in few steps, from rankings the worst first."""
    rankings = [[(r, 3 - rank) for r, rank in ranking] for ranking in guests.rankings_of(SEED, 100)]
    tokenizer = tuning.shipped("instruct")[1]
    model = rlhf.train_reward_model(guests.policy_of(SEED), tokenizer, rankings, SEED, steps=40)
    return reward_data.measures_of(model, SEED)


def test_control_a_turned_sign_fails_the_check(turned):
    assert outside("100 rankings", "accuracy", turned["accuracy"])


@pytest.mark.parametrize("measure", ["accuracy", "of what noise permits", "nats"])
def test_control_a_turned_sign_fails_a_check_of_the_standard_row(turned, measure):
    assert outside(STANDARD, measure, turned[measure])


def test_control_a_model_without_training_fails_checks_of_the_standard_row():
    """All its scores are 0: nothing is right, half of the comparisons, log 2."""
    pairs = [(reply(TWO), reply(RUDE))] * 3
    assert outside(STANDARD, "accuracy", reward_data.clean_accuracy(pairs, torch.zeros(3, 2)))
    found = reward_data.against_labellers(torch.zeros(3), torch.tensor([0.9, 0.8, 0.95]))
    for measure in ("of what noise permits", "nats"):
        assert outside(STANDARD, measure, found[measure])


def test_the_figures_are_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(tuning, "shipped", None)
    results = load("reward_data")
    for fig in (reward_data.draw(results), reward_data.draw_reliability(results)):
        assert plotting.show(fig, "panels").alt


@pytest.mark.parametrize("setting", reward_data.GRID)
def test_each_setting_has_every_measure(setting):
    for measure in ("accuracy", "agrees", "permitted", "ece", "predicted 0", "preferred 4"):
        assert len(load("reward_data").of(setting, measure)) == len(reward_data.SEEDS)

"""Biased labellers: matched pairs differ as they say, and a check that a turned sign fails."""

import pytest

from course_lib import plotting, rlhf
from course_lib.studies import guests, load, reward_bias, tuning
from course_lib.studies.reward_data import preferred
from course_lib.world.preferences import Question, panel

SEED = 9
TEXTS = (
    " The soup was wonderful. The bed was really cosy.",
    " What a great soup!",
    " The soup was great.",
    " We had a cosy bed.",
    " The soup was awful.",
)


@pytest.fixture(scope="module")
def replies():
    tokenizer = tuning.shipped("instruct")[1]
    inn = Question("inn", "Oakby")
    return [rlhf.read_reply(tokenizer, inn, [*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
            for text in TEXTS]  # fmt: skip


def test_plain_replies_are_reasons_alone(replies, monkeypatch):
    ranking = [(reply, rank) for rank, reply in enumerate(replies)]
    monkeypatch.setattr(guests, "held_out_rankings", lambda seed: [ranking])
    assert [reply.text for reply in reward_bias.plain_replies(0)] == list(TEXTS[:3])


@pytest.mark.parametrize("change", [reward_bias.flattered, reward_bias.lengthened])
def test_one_more_sentence_costs_half_a_reason(replies, change):
    for reply in replies[:3]:
        changed = change(reply)
        assert changed.truth == reply.truth - 0.5
        assert changed.judgement.sentences == reply.judgement.sentences + 1
        assert reply.text in changed.text and changed.question == reply.question
        assert changed.ids[-1] == reply.ids[-1] == tuning.shipped("instruct")[1].eos_token_id


def test_flattery_goes_round():
    tokenizer = tuning.shipped("instruct")[1]
    ids = [*tokenizer(TEXTS[1])["input_ids"], tokenizer.eos_token_id]
    reply = rlhf.read_reply(tokenizer, Question("inn", "Oakby"), ids)
    texts = [reward_bias.flattered(reply, i).text for i in range(4)]
    assert len(set(texts)) == 3 and texts[3] == texts[0]


def test_the_empty_reply_is_the_worst_of_all(replies):
    nothing = reward_bias.empty(replies[0])
    assert nothing.text == "" and len(nothing.ids) == 1
    assert nothing.truth == -3 < min(reply.truth for reply in replies)


@pytest.mark.parametrize(("setting", "change", "log_odds"), [
    ("no bias", reward_bias.flattered, -1), ("no bias", reward_bias.lengthened, -1),
    ("like flattery", reward_bias.flattered, 2), ("like length", reward_bias.lengthened, 1),
])  # fmt: skip
def test_a_bias_turns_the_preference_round(replies, setting, change, log_odds):
    """Half a reason at noise 0.5: -0.5/0.5 = -1 in log-odds; with 1.5 for flattery +2, with 1 for
    the sentence +1. All weigh alike here."""
    labellers = panel(0, disagreement=0, **reward_bias.GRID[setting])
    chance = preferred(labellers, change(replies[0]), replies[0])
    assert chance == pytest.approx(1 / (1 + 2.718281828459045**-log_odds))


def test_biased_labellers_rank_the_same_replies(replies, monkeypatch):
    rankings = [[(reply, rank) for rank, reply in enumerate(replies)]] * 30
    monkeypatch.setattr(guests, "rankings_of", lambda seed, count: rankings)
    for bias in ({}, {"length_bias": 1.0}):
        again = reward_bias.labelled(0, **bias)
        assert [{r.text for r, _ in ranking} for ranking in again] == [set(TEXTS)] * 30


def test_the_reply_of_the_highest_score_is_picked(replies):
    score = {id(reply): float(i == 3) for i, reply in enumerate(replies)}
    ranking = [(reply, rank) for rank, reply in enumerate(replies)]
    assert reward_bias.picked([ranking], score) == [replies[3]]


# --- control ------------------------------------------------------------------------------------


def test_control_a_turned_sign_fails_the_check():
    rankings = [[(r, 3 - rank) for r, rank in ranking] for ranking in guests.rankings_of(SEED, 60)]
    tokenizer = tuning.shipped("instruct")[1]
    model = rlhf.train_reward_model(guests.policy_of(SEED), tokenizer, rankings, SEED, steps=40)
    measured = reward_bias.measures_of(model, SEED)
    for measure in reward_bias.CHECKS["no bias"]:
        low, high = load("reward_bias").interval_for_a_new_seed("no bias", measure)
        assert not low <= measured[measure] <= high, measure


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(tuning, "shipped", None)
    assert plotting.show(reward_bias.draw(load("reward_bias")), "panels").alt


@pytest.mark.parametrize("setting", reward_bias.GRID)
def test_each_setting_has_every_measure(setting):
    for measure in ("flattered", "longer", "below the empty reply", "accuracy", "truth"):
        assert len(load("reward_bias").of(setting, measure)) == len(reward_bias.SEEDS)

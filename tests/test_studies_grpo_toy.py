"""The study of GRPO on a policy that can be counted: settings, and faults that fail its check."""

import pytest
import torch

from course_lib import grpo, grpo_rollouts, plotting
from course_lib.enumeration import exact_optimum, kl_divergence, policy_distribution
from course_lib.studies import grpo_toy, load, ppo_toy

CHECKED, SEED = "reward, std, beta 0.5", 9


def outside(measure, value):
    low, high = load("grpo_toy").interval_for_a_new_seed(CHECKED, measure)
    return not low <= value <= high


def test_settings_differ_in_the_form_of_the_kl_alone():
    """Every setting has one weight above 0, and it is the setting's β."""
    for setting in grpo_toy.GRID.values():
        settings = grpo_toy.settings_of(**setting)
        weights = {"kl_coef": settings.kl_coef, "kl_loss_coef": settings.kl_loss_coef}
        assert weights.pop(setting["place"]) == setting["beta"] and list(weights.values()) == [0]
        plain = grpo_toy.settings_of(1.0, "kl_coef")
        for name in ("normalise", "group_size", "epochs", "minibatch_size", "clip_eps"):
            assert getattr(settings, name) == getattr(plain, name)
    assert len(grpo_toy.GRID) == len(grpo_toy.FORMS) * len(grpo_toy.BETAS)


def test_as_many_responses_and_steps_as_ppo_had():
    settings = grpo_toy.settings_of(0.5, "kl_coef")
    ppo = ppo_toy.settings_of(0.5)
    assert settings.minibatch_size == ppo.minibatch_size == ppo_toy.ROLLOUT
    assert settings.epochs == ppo.epochs


def test_at_the_optimum_the_net_scores_are_equal_and_all_groups_dead():
    """r - β log π*/π_ref = β log Z for every response, whatever r is: the advantages vanish."""
    ref = policy_distribution(ppo_toy.reference(0), ppo_toy.PROMPT, ppo_toy.ALL)
    scores = ppo_toy.scores_of(0).double()
    best = exact_optimum(ref, scores, 0.5)
    net = grpo.net_scores(scores, torch.ones(31).bool(), best.log(), ref.log(), kl_coef=0.5)
    assert net.std() < 1e-6
    assert grpo.dead_groups(net[:24], grpo_toy.GROUP).all()
    assert not grpo.dead_groups(scores[:24], grpo_toy.GROUP).any()
    assert kl_divergence(best, ref) > 0.01


def test_control_a_turned_sign_of_the_advantage_fails_the_check(monkeypatch):
    real = grpo_rollouts.group_advantages
    monkeypatch.setattr(grpo_rollouts, "group_advantages", lambda *given: -real(*given))
    measures = grpo_toy.run(grpo_toy.GRID[CHECKED], SEED)
    assert outside("KL to optimum", measures["KL to optimum"]) and measures["gain"] < 0


def test_control_scores_without_the_kl_fail_the_check(monkeypatch):
    """The score alone has another optimum: all probability on the best response."""
    real = grpo_rollouts.net_scores
    monkeypatch.setattr(grpo_rollouts, "net_scores",
                        lambda *given, **how: real(*given, **how | {"kl_coef": 0.0}))  # fmt: skip
    measures = grpo_toy.run(grpo_toy.GRID[CHECKED], SEED)
    assert outside("KL to optimum", measures["KL to optimum"])


def test_the_figure_is_drawn_from_stored_results_alone(monkeypatch):
    monkeypatch.setattr(ppo_toy, "reference", None)
    assert plotting.show(grpo_toy.draw(load("grpo_toy")), "points").alt


@pytest.mark.parametrize("setting", grpo_toy.GRID)
def test_each_setting_has_every_measure(setting):
    for measure in ("KL to optimum", "KL at the start", "gain", "KL"):
        assert len(load("grpo_toy").of(setting, measure)) == len(grpo_toy.SEEDS)

"""GRPO on the policy whose 31 responses can be counted: where each form of the KL ends.

Policy, scores, rollouts and steps of the study ``ppo_toy``, in groups of eight. The KL is in the
reward, with and without the division by the group's standard deviation, or in the loss, as k2 or
k3, or as k3 times the ratio. The sum over a response's tokens is divided by a constant, so that its
length plays no part.
"""

import copy

from torch import Generator, Tensor

from course_lib import plotting
from course_lib.enumeration import (
    completions,
    exact_optimum,
    kl_divergence,
    objective,
    policy_distribution,
)
from course_lib.grpo import (
    GRPOSettings,
    aggregate,
    group_advantages,
    grpo_loss,
    net_scores,
    token_losses,
)
from course_lib.grpo_rollouts import GRPORollouts
from course_lib.live_rollouts import LiveRollouts, read_responses
from course_lib.models import Llama
from course_lib.studies import ppo_toy
from course_lib.studies.ppo_toy import ALL, END, LR, PROMPT, ROLLOUT, ROOM, STEPS
from course_lib.studies.stored import Results
from course_lib.training import train

FORMS = {
    "reward": {"place": "kl_coef"},
    "reward, std": {"place": "kl_coef", "std": "population"},
    "k2 in the loss": {"place": "kl_loss_coef", "kl_estimator": "k2"},
    "k3 in the loss": {"place": "kl_loss_coef", "kl_estimator": "k3"},
    "k3 times the ratio": {"place": "kl_loss_coef", "kl_estimator": "k3", "kl_corrected": True},
    "k3 in the loss, std": {"place": "kl_loss_coef", "kl_estimator": "k3", "std": "population"},
}
BETAS = (1.0, 0.5)
GRID = {f"{form}, beta {beta:g}": {"beta": beta, **how}
        for beta in BETAS for form, how in FORMS.items()}  # fmt: skip
SEEDS = range(8)
MODELS = ()
USES = (completions, exact_optimum, kl_divergence, objective, policy_distribution,
        ppo_toy.reference, ppo_toy.scores_of, ppo_toy.scorer_of, GRPOSettings, grpo_loss,
        token_losses, aggregate, group_advantages, net_scores, read_responses, LiveRollouts,
        GRPORollouts)  # fmt: skip
CHECKS = {"reward, std, beta 0.5": ("KL to optimum",)}
LEAST_SPREAD = {"KL to optimum": 0.002}
GROUP, EPOCHS = 8, 4


def settings_of(beta: float, place: str, std: str | None = None, **changes) -> GRPOSettings:
    """Of a setting; ``place`` is the argument that the weight of the KL goes to."""
    return GRPOSettings(max_new_tokens=ROOM, minibatch_size=ROLLOUT, group_size=GROUP,
                        epochs=EPOCHS, normalise="constant", std=std, **{place: beta},
                        **changes)  # fmt: skip


def tuned(ref: Llama, scores: Tensor, setting: dict, seed: int) -> Llama:
    """The policy after GRPO: 100 rollouts of 32 groups, each used for four steps."""
    settings, model = settings_of(**setting), copy.deepcopy(ref)
    stream = GRPORollouts(model, [PROMPT], ppo_toy.scorer_of(scores), settings,
                          groups=ROLLOUT // GROUP, eos_token_id=END,
                          generator=Generator().manual_seed(seed), ref_policy=ref)  # fmt: skip
    train(model, stream, grpo_loss(settings), max_steps=STEPS, lr=LR, progress=False)
    return model


def run(setting: dict, seed: int) -> dict[str, float]:
    """``KL to optimum`` of GRPO's policy and of the reference it began as, in nats; what part of
    the possible gain in E[r] - β KL was made (``gain``); ``KL`` to the reference, in nats."""
    ref, scores, beta = ppo_toy.reference(seed), ppo_toy.scores_of(seed), setting["beta"]
    before = policy_distribution(ref, PROMPT, ALL)
    best = exact_optimum(before, scores, beta)
    found = policy_distribution(tuned(ref, scores, setting, seed), PROMPT, ALL)
    at = [objective(probs, before, scores, beta) for probs in (before, found, best)]
    return {"KL to optimum": kl_divergence(found, best),
            "KL at the start": kl_divergence(before, best),
            "gain": (at[1] - at[0]) / (at[2] - at[0]),
            "KL": kl_divergence(found, before)}  # fmt: skip


def draw(results: Results):
    """The distance from the optimum after GRPO, a point a seed, a panel a weight."""
    fig, axes = plotting.panels("How far from the exact optimum", 2, size=(9, 3.4), sharey=True)
    for ax, beta in zip(axes, BETAS, strict=True):
        for y, form in enumerate(FORMS):
            values = results.of(f"{form}, beta {beta:g}", "KL to optimum")
            ax.plot([max(v, 1e-6) for v in values], [y] * len(values), linestyle="none",
                    marker="o", alpha=0.7, color=plotting.COLOURS["blue"])  # fmt: skip
        ax.axvline(0.01, color=plotting.INK, linestyle=":")
        ax.set(title=f"β = {beta:g}", xlabel="KL to π* (nats)", xscale="log")
    names = {"reward": "in the reward", "reward, std": "in the reward, std"}
    axes[0].set_yticks(range(len(FORMS)), [names.get(form, form) for form in FORMS])
    axes[0].set_ylim(len(FORMS) - 0.5, -0.5)
    return fig

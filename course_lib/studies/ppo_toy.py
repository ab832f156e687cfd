"""PPO on a policy whose 31 responses can be counted: does it end at the exact optimum?

The policy is a tiny Llama with six words, the first of which ends a response, and room for two
tokens. Every response has a random score in [0, 1]. The optimum of score and KL is a closed form
(``enumeration``), and so is the distribution of best-of-n.
"""

import copy

import torch
from torch import Generator, Tensor

from course_lib import plotting
from course_lib.enumeration import (
    completions,
    exact_optimum,
    kl_divergence,
    objective,
    policy_distribution,
)
from course_lib.live_rollouts import LiveRollouts, read_responses
from course_lib.models import Llama, LlamaConfig
from course_lib.ppo import PPOSettings, gae, per_token_rewards, policy_loss, ppo_loss, value_loss
from course_lib.ppo_rollouts import ActorCritic, PPORollouts
from course_lib.studies.stored import Results
from course_lib.training import train

PROMPT, WORDS, ROOM, END = [1, 2], 6, 2, 0
ALL = completions(WORDS, ROOM, END)
GRID = {"beta 1": {"beta": 1.0}, "beta 0.5": {"beta": 0.5}, "beta 0.3": {"beta": 0.3}}
SEEDS = range(8)
MODELS = ()
USES = (completions, exact_optimum, kl_divergence, objective, policy_distribution, ppo_loss,
        policy_loss, value_loss, gae, per_token_rewards, read_responses, ActorCritic,
        LiveRollouts, PPORollouts)  # fmt: skip
CHECKS = {"beta 0.5": ("KL to optimum",)}
LEAST_SPREAD = {"KL to optimum": 0.001}
ROLLOUT, STEPS, LR = 256, 400, 3e-3


def reference(seed: int) -> Llama:
    """A Llama whose next words have odds up to some 5 : 1, in evaluation mode."""
    model = Llama(LlamaConfig(vocab_size=WORDS, n_layer=1, n_head=2, n_kv_head=1, n_embd=16,
                              n_inner=16, block_size=16))  # fmt: skip
    generator = Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.normal_(std=p.shape[1] ** -0.5, generator=generator)
            else:
                p.uniform_(0.5, 1.5, generator=generator)
        model.embed.weight.mul_(0.5)
    return model.eval()


def scores_of(seed: int) -> Tensor:
    """A random score in [0, 1] of each response, (31,)."""
    return torch.rand(len(ALL), generator=Generator().manual_seed(100 + seed))


def scorer_of(scores: Tensor):
    """The table of scores as PPO's reward."""
    table = {tuple(row): score for row, score in zip(ALL, scores.tolist(), strict=True)}
    return lambda prompts, written: torch.tensor([table[tuple(row)] for row in written])


def settings_of(beta: float) -> PPOSettings:
    return PPOSettings(max_new_tokens=ROOM, minibatch_size=ROLLOUT, kl_coef=beta)


def tuned(ref: Llama, scores: Tensor, beta: float, seed: int) -> Llama:
    """The policy after PPO: 100 rollouts, each used for four steps."""
    settings = settings_of(beta)
    model = ActorCritic(copy.deepcopy(ref))
    stream = PPORollouts(model, ref, [PROMPT], scorer_of(scores), settings, batch_size=ROLLOUT,
                         eos_token_id=END, generator=Generator().manual_seed(seed))  # fmt: skip
    train(model, stream, ppo_loss(settings), max_steps=STEPS, lr=LR, progress=False)
    return model.policy


def run(setting: dict, seed: int) -> dict[str, float]:
    """``KL to optimum`` of PPO's policy and of the reference it began as, in nats; what part of the
    possible gain in E[r] - β KL was made (``gain``)."""
    ref, scores, beta = reference(seed), scores_of(seed), setting["beta"]
    before = policy_distribution(ref, PROMPT, ALL)
    best = exact_optimum(before, scores, beta)
    found = policy_distribution(tuned(ref, scores, beta, seed), PROMPT, ALL)
    at = [objective(probs, before, scores, beta) for probs in (before, found, best)]
    return {"KL to optimum": kl_divergence(found, best),
            "KL at the start": kl_divergence(before, best),
            "gain": (at[1] - at[0]) / (at[2] - at[0])}  # fmt: skip


def best_of_n(ref_probs: Tensor, scores: Tensor, n: int) -> Tensor:
    """The exact distribution of the best of n draws, (N,), where no two scores are equal.

    The best is y if all draws score at most r(y) and not all of them less: F(y)ⁿ - F(<y)ⁿ.

    Args:
        ref_probs, scores: (N,).

    Example: of two draws from two equally likely responses, the better one is among three of four.
        >>> best_of_n(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), 2)
        tensor([0.7500, 0.2500])
    """
    order = scores.argsort()
    below = ref_probs[order].cumsum(0)  # F(y), (N,)
    mass = below**n - (below - ref_probs[order]) ** n
    return torch.empty_like(mass).index_copy_(0, order, mass)


def draw(results: Results):
    """The distance from the optimum before and after PPO, a point a seed."""
    fig, ax = plotting.figure("How far from the exact optimum", "KL to π* (nats)",
                              "weight of the KL", size=(7, 3))  # fmt: skip
    for measure, colour, marker in (("KL at the start", "orange", "s"),
                                    ("KL to optimum", "blue", "o")):  # fmt: skip
        for y, setting in enumerate(results.settings):
            values = list(results.of(setting, measure))
            ax.plot([max(v, 1e-6) for v in values], [y] * len(values), linestyle="none",
                    marker=marker, color=plotting.COLOURS[colour], alpha=0.7,
                    label=None if y else {"o": "after PPO", "s": "reference"}[marker])  # fmt: skip
    ax.axvline(0.01, color=plotting.INK, linestyle=":")
    ax.set_xscale("log")
    names = [s.replace("beta", "β =") for s in results.settings]
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.legend(loc="upper center")
    return fig

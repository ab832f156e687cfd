"""What the studies on rewards and PPO share: policy, rankings and reward model of a seed.

The studies go seed by seed, so what all settings of a seed begin with is made once a process.
"""

from collections.abc import Sequence
from functools import lru_cache

from torch import nn

from course_lib import rlhf
from course_lib.rlhf import Ranking, Reply
from course_lib.studies.tuning import shipped
from course_lib.world.preferences import Labeller, panel

RANKINGS, STEPS = 600, 200
"""Rankings of four replies that a reward model learns from, and its steps, unless a study varies
them."""
KEPT = 2
"""Seeds whose policies are kept in memory."""


@lru_cache(KEPT)
def policy_of(seed: int) -> nn.Module:
    """Step 1: the instruction-tuned model after a seed's demonstrations. Nothing changes it."""
    model, tokenizer = shipped("instruct")
    return rlhf.tune_on_demonstrations(model, tokenizer, seed)


@lru_cache(KEPT)
def rankings_of(seed: int, count: int = RANKINGS) -> list[Ranking]:
    """Step 2a: rankings of that policy's replies by a panel of labellers of the seed."""
    return rlhf.collect_rankings(policy_of(seed), shipped("instruct")[1], panel(seed), count, seed)


@lru_cache(KEPT)
def reward_model_of(seed: int, count: int = RANKINGS, steps: int = STEPS) -> nn.Module:
    """Step 2b: the reward model that learnt from them."""
    return rlhf.train_reward_model(policy_of(seed), shipped("instruct")[1],
                                   rankings_of(seed, count), seed, steps=steps)  # fmt: skip


@lru_cache(KEPT)
def held_out_rankings(seed: int, count: int = 100) -> list[Ranking]:
    """Rankings by the truth, without noise, of the policy's replies about held-out places; none is
    cut off on purpose, so they are harder than those of the training."""
    return rlhf.collect_rankings(policy_of(seed), shipped("instruct")[1], [Labeller(noise=0)],
                                 count, 500 + seed, cut=0.0, held_out=True)  # fmt: skip


def pairs_of(rankings: Sequence[Ranking]) -> list[tuple[Reply, Reply]]:
    """(better, worse) of every pair of every ranking."""
    return [(a, b) for ranking in rankings for a, i in ranking for b, j in ranking if i < j]

"""Chapter 9's own run: the three steps of RLHF, small enough for a page.

Fewer demonstrations, rankings and steps than in ``ppo_kl``, and each rollout is used twice. The
rows are cheap, so there are sixteen seeds: what they predict for a new one is narrow enough to tell
a run that learnt nothing.
"""

from functools import lru_cache

from torch import nn

from course_lib import plotting, rlhf
from course_lib.rlhf import Ranking
from course_lib.studies import guests, ppo_kl
from course_lib.studies.stored import Results
from course_lib.studies.tuning import shipped
from course_lib.world.preferences import panel

GRID = {"live": {}}
SEEDS = range(16)
MODELS = ("instruct",)
USES = (*ppo_kl.USES, ppo_kl.measured, ppo_kl.small_reward_model)
CHECKS = {"live": ("truth", "honest")}
LEAST_SPREAD = {"truth": 0.1, "honest": 0.02}
DEMONSTRATION_STEPS, RANKINGS, REWARD_STEPS = 40, 150, 80
UPDATES, RESPONSES, LR, WARMUP = 12, 32, 5e-4, 10
SETTINGS = rlhf.ppo_settings(minibatch_size=RESPONSES // 2, epochs=2)


@lru_cache(guests.KEPT)
def policy_of(seed: int) -> nn.Module:
    """Step 1: the instruction-tuned model after a seed's demonstrations. Nothing changes it."""
    model, tokenizer = shipped("instruct")
    return rlhf.tune_on_demonstrations(model, tokenizer, seed, steps=DEMONSTRATION_STEPS)


@lru_cache(guests.KEPT)
def rankings_of(seed: int) -> list[Ranking]:
    """Step 2a: rankings of that policy's replies by a panel of labellers of the seed."""
    tokenizer = shipped("instruct")[1]
    return rlhf.collect_rankings(policy_of(seed), tokenizer, panel(seed), RANKINGS, seed)


@lru_cache(guests.KEPT)
def reward_model_of(seed: int) -> nn.Module:
    """Step 2b: the reward model that learnt from them."""
    return rlhf.train_reward_model(policy_of(seed), shipped("instruct")[1], rankings_of(seed), seed,
                                   steps=REWARD_STEPS)  # fmt: skip


def run(setting: dict, seed: int) -> dict[str, float]:
    """``ppo_kl.MEASURES`` after step 3, and ``"truth at the start"`` ... before it."""
    start, reward_model, tokenizer = policy_of(seed), reward_model_of(seed), shipped("instruct")[1]
    policy, _, _ = rlhf.tune_by_ppo(
        start, tokenizer, rlhf.score_with(reward_model, tokenizer), seed, critic=reward_model,
        updates=UPDATES, lr=LR, batch_size=RESPONSES, warmup_steps=WARMUP, settings=SETTINGS,
    )  # fmt: skip
    before = ppo_kl.measured(start, start, reward_model, seed)
    after = ppo_kl.measured(policy, start, reward_model, seed)
    return after | {f"{name} at the start": value for name, value in before.items()}


def draw(results: Results, live: dict[str, float] | None = None):
    """Truth and KL at the end of the runs, a point a seed, with a run made just now beside them."""
    labels = {"truth": "truth", "KL": "KL (nats a reply)"}
    fig, axes = plotting.panels("Where the live run lies", 2, size=(9, 2.6), sharey=True)
    for ax, (measure, label) in zip(axes, labels.items(), strict=True):
        rows = {"the start": (f"{measure} at the start", "s", "orange"),
                "after PPO": (measure, "o", "blue")}  # fmt: skip
        for y, (name, marker, colour) in enumerate(rows.values()):
            values = results.of("live", name).values
            ax.plot(values, [y] * len(values), marker, alpha=0.6, color=plotting.COLOURS[colour])
        if live:
            ax.plot(live[measure], 1, "*", markersize=14, color=plotting.COLOURS["green"],
                    label="live")  # fmt: skip
            ax.legend(loc="center right")
        ax.set(xlabel=label, ylim=(1.6, -0.6))
        ax.set_yticks(range(len(rows)), list(rows))
    return fig

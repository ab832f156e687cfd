"""What the KL's weight does: a learnt reward, the truth and the distance from the start.

PPO on the guests' questions with one reward model a seed and everything equal but the weight;
beside it best-of-n by the same reward model, which trains nothing (Gao et al., 2023, compare both
over √KL). "small" has fewer rankings, fewer and smaller updates: what ``ppo_ablations`` begins
with, and what DPO is compared with at equal work.
"""

import math
from dataclasses import replace
from functools import lru_cache
from statistics import fmean

from torch import nn

from course_lib import plotting, rlhf
from course_lib.live_rollouts import LiveRollouts, read_responses
from course_lib.measuring import mean_interval
from course_lib.ppo import gae, per_token_rewards, policy_loss, ppo_loss, value_loss
from course_lib.ppo_rollouts import ActorCritic, PPORollouts
from course_lib.studies import guests
from course_lib.studies.stored import Results
from course_lib.studies.tuning import shipped
from course_lib.world import preferences

MAIN = "kl 0.2"
"""The weight that counts as "with KL control"."""
WEIGHTS = (0.0, 0.02, 0.2, 0.5)
GRID = {
    "best of n": {"best_of": (1, 2, 4, 8, 16, 32)},
    **{f"kl {weight:g}": {"kl_coef": weight} for weight in WEIGHTS},
    "small": {"kl_coef": 0.2, "small": True},
}
SEEDS = range(8)
MODELS = ("instruct",)
PPO = (per_token_rewards, gae, policy_loss, value_loss, ppo_loss, read_responses, ActorCritic,
       LiveRollouts, PPORollouts)  # fmt: skip
USES = (
    guests, preferences.judge, preferences.Judgement, preferences.demonstration,
    preferences.Labeller, preferences.panel, rlhf.tune_on_demonstrations, rlhf.collect_rankings,
    rlhf.rank_again, rlhf.train_reward_model, rlhf.RankingBatches, rlhf.sample_replies,
    rlhf.ask_held_out, rlhf.figures, rlhf.kl_to, rlhf.best_of_n, rlhf.ppo_settings,
    rlhf.tune_by_ppo, *PPO,
)  # fmt: skip
CHECKS = {}
CHECKED_BY = "ppo_live"
RANKINGS, STEPS = 1200, 300
"""Of the reward model: more than a study of rewards needs, so that it is worth following."""
UPDATES, EVERY, LR = 30, 10, 3e-4
SMALL_UPDATES, SMALL_RESPONSES, SMALL_RANKINGS, SMALL_STEPS = 12, 32, 200, 100
ASKED = 128
"""Held-out questions, the same of all settings of a seed."""
MEASURES = ("truth", "helpful", "honest", "harmless", "reasons", "broken", "tokens", "proxy", "KL")


def reward_model_of(seed: int) -> nn.Module:
    """The reward model of every run but the small one, and of best-of-n."""
    return guests.reward_model_of(seed, RANKINGS, STEPS)


@lru_cache(guests.KEPT)
def small_reward_model(seed: int) -> nn.Module:
    """The reward model of the small run."""
    return guests.reward_model_of(seed, SMALL_RANKINGS, SMALL_STEPS)


def measured(
    policy: nn.Module, start: nn.Module, reward_model: nn.Module, seed: int
) -> dict[str, float]:
    """``MEASURES`` of sampled replies to held-out questions: means a reply, ``proxy`` the reward
    model's score, ``KL`` that to the policy which PPO began with (``start``), in nats a reply."""
    tokenizer = shipped("instruct")[1]
    replies = rlhf.ask_held_out(policy, tokenizer, seed, ASKED)
    found = rlhf.figures(replies)
    found["proxy"] = fmean(rlhf.score_replies(reward_model, tokenizer, replies))
    found["KL"] = rlhf.kl_to(policy, start, replies, tokenizer.pad_token_id)
    return {name: round(found[name], 4) for name in MEASURES}


def best_of(seed: int, sizes: tuple[int, ...]) -> dict[str, float]:
    """The means of the best of n replies by the reward model, for each n; ``KL`` is the bound
    log n - (n - 1) / n. One set of replies serves all n."""
    tokenizer, model = shipped("instruct")[1], reward_model_of(seed)
    replies = rlhf.ask_held_out(guests.policy_of(seed), tokenizer, seed, ASKED, max(sizes))
    scores = dict(zip(map(id, replies), rlhf.score_replies(model, tokenizer, replies), strict=True))
    found = {}
    for n in sizes:
        best = rlhf.best_of_n(replies, [scores[id(reply)] for reply in replies], n)
        means = rlhf.figures(best) | {"proxy": fmean(scores[id(reply)] for reply in best),
                                      "KL": math.log(n) - (n - 1) / n}  # fmt: skip
        found |= {f"{name} {n}": round(means[name], 4) for name in MEASURES}
    return found


def run(setting: dict, seed: int) -> dict[str, float]:
    """``MEASURES`` after 0, 10, 20, 30 updates (``"truth 10"``), of "small" after 0 and 12, or
    of the best of n (``"truth 16"``); ``gain``, by how much the truth rose."""
    if "best_of" in setting:
        return best_of(seed, setting["best_of"])
    small = setting.get("small", False)
    policy, tokenizer = guests.policy_of(seed), shipped("instruct")[1]
    reward_model = small_reward_model(seed) if small else reward_model_of(seed)
    updates, every = (SMALL_UPDATES, SMALL_UPDATES) if small else (UPDATES, EVERY)
    size = {"batch_size": SMALL_RESPONSES} if small else {"lr": LR}
    settings = rlhf.ppo_settings(kl_coef=setting["kl_coef"])
    if small:
        settings = replace(settings, minibatch_size=SMALL_RESPONSES // 2)
    course: dict[str, float] = {}

    def watch(tuned: nn.Module, update: int) -> dict[str, float]:
        now = measured(tuned, policy, reward_model, seed)
        course.update({f"{name} {update}": value for name, value in now.items()})
        return {}

    watch(policy, 0)
    rlhf.tune_by_ppo(policy, tokenizer, rlhf.score_with(reward_model, tokenizer), seed,
                     critic=reward_model, updates=updates, watch=watch, watch_every=every,
                     settings=settings, **size)  # fmt: skip
    return course | {"gain": course[f"truth {updates}"] - course["truth 0"]}


# --- figures ------------------------------------------------------------------------------------


def weights(results: Results) -> list[str]:
    """The settings that differ in the KL's weight alone."""
    return [setting for setting in results.settings if setting.startswith("kl ")]


def course_of(results: Results, setting: str, measure: str) -> tuple[list[int], list[float]]:
    """Updates, or sizes of n, and the measure's mean over the seeds at each."""
    names = [name for name in results.of_all(setting) if name.rsplit(" ", 1)[0] == measure]
    return ([int(name.rsplit(" ", 1)[1]) for name in names],
            [results.of(setting, name).mean for name in names])  # fmt: skip


def draw(results: Results):
    """Proxy, truth and KL over the updates, a line a weight, with 99 % intervals."""
    labels = {"proxy": "reward model's score", "truth": "truth", "KL": "KL (nats a reply)"}
    fig, axes = plotting.panels("What the weight of the KL does", 3, size=(9, 3.6))
    for ax, (measure, label) in zip(axes, labels.items(), strict=True):
        for number, setting in enumerate(weights(results)):
            at = course_of(results, setting, measure)[0]
            bands = [mean_interval(results.of(setting, f"{measure} {u}").values) for u in at]
            (line,) = ax.plot(at, [b[0] for b in bands], marker=plotting.MARKERS[number],
                              markersize=4, label=setting.replace("kl", "weight"))  # fmt: skip
            ax.fill_between(at, [b[1] for b in bands], [b[2] for b in bands], alpha=0.15,
                            color=line.get_color(), linewidth=0)  # fmt: skip
        ax.set(xlabel="update", ylabel=label)
    axes[2].set_yscale("symlog", linthresh=1)
    axes[2].set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def draw_frontier(results: Results):
    """Score and truth against the root of the KL: PPO at each weight, and best-of-n."""
    fig, axes = plotting.panels("Reward against the distance from the start", 2, size=(9, 3.9))
    for ax, (measure, label) in zip(
        axes, {"proxy": "reward model's score", "truth": "truth"}.items(), strict=True
    ):
        for number, setting in enumerate([*weights(results), "best of n"]):
            roots = [math.sqrt(max(kl, 0)) for kl in course_of(results, setting, "KL")[1]]
            ax.plot(roots, course_of(results, setting, measure)[1], markersize=4,
                    marker=plotting.MARKERS[number],
                    label=setting.replace("kl", "PPO, weight"))  # fmt: skip
        ax.set(xlabel="√KL (KL in nats a reply)", ylabel=label)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig

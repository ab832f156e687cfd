"""DPO on the guests' questions, on the rankings from which PPO's reward model learns.

What β does to the truth, to the distance from the start and to the log-probability of preferred
replies; rankings of the policy's own replies as it moves ("on-policy") against rankings of its
start. "small" is on the rankings of ppo_kl's "small", with about as many rows read and learnt.
Figures for PPO are the study ppo_kl's, measured on the same questions.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from course_lib import plotting, rlhf
from course_lib.dpo import dpo_loss, pair_logps, pair_loss, reference_pairs
from course_lib.measuring import mean_interval
from course_lib.pairs import PairBatches, collate_pairs
from course_lib.rlhf import Ranking, Reply
from course_lib.studies import guests, ppo_kl
from course_lib.studies.stored import Results
from course_lib.studies.tuning import shipped
from course_lib.world import preferences

BETAS = (0.05, 0.2, 0.5, 2.0)
MAIN = "beta 0.2"
"""The β of PPO's run with KL control: both look for the same optimum."""
GRID = {
    "start": {},
    **{f"beta {beta:g}": {"beta": beta} for beta in BETAS},
    "on-policy": {"beta": 0.2, "rounds": 3},
    "small": {"beta": 0.2, "small": True},
}
SEEDS = range(8)
MODELS = ("instruct",)
USES = (
    guests, preferences.judge, preferences.Judgement, preferences.demonstration,
    preferences.Labeller, preferences.panel, rlhf.tune_on_demonstrations, rlhf.collect_rankings,
    rlhf.rank_again, rlhf.sample_replies, rlhf.ask_held_out, rlhf.figures, rlhf.kl_to,
    rlhf.reply_logps, rlhf.preference_pairs, rlhf.tune_by_dpo, dpo_loss, pair_logps, pair_loss,
    reference_pairs, collate_pairs, PairBatches,
)  # fmt: skip
CHECKS = {}
CHECKED_BY = "dpo_live"
RANKINGS, STEPS, LR, BATCH = ppo_kl.RANKINGS, 150, 1e-3, 16
SMALL_RANKINGS, SMALL_STEPS = ppo_kl.SMALL_RANKINGS, 140
MEASURES = ("truth", "helpful", "honest", "harmless", "reasons", "broken", "tokens", "KL",
            "chosen", "rejected", "margin", "accuracy")  # fmt: skip


Pairs = tuple[list[Reply], Tensor, Tensor]
"""N replies, the numbers of the better and the worse one of each pair, (2, P), and the log π that
the start gives to each reply, (N,)."""


def pairs_in(rankings: list[Ranking], start: nn.Module) -> Pairs:
    """Every pair of every ranking, read by the start."""
    pairs = guests.pairs_of(rankings)
    replies = list({id(reply): reply for pair in pairs for reply in pair}.values())
    where = {id(reply): i for i, reply in enumerate(replies)}
    numbers = torch.tensor([[where[id(reply)] for reply in pair] for pair in pairs]).T
    pad = shipped("instruct")[1].pad_token_id
    return replies, numbers, rlhf.reply_logps(start, replies, pad)


@lru_cache(guests.KEPT)
def held_out_pairs(seed: int) -> Pairs:
    """The pairs of clean held-out rankings."""
    return pairs_in(guests.held_out_rankings(seed), guests.policy_of(seed))


def read_pairs(policy: nn.Module, pairs: Pairs) -> dict[str, float]:
    """log π of the better and of the worse reply of pairs (``chosen``,
    ``rejected``), the difference of their log-ratios to the start (``margin``), in nats, and how
    often it is above 0 (``accuracy``; 0 counts half)."""
    replies, (better, worse), start = pairs
    now = rlhf.reply_logps(policy, replies, shipped("instruct")[1].pad_token_id)  # (N,)
    margin = (now - start)[better] - (now - start)[worse]  # (P,)
    right = (margin > 0).float() + 0.5 * (margin == 0)
    found = {"chosen": now[better], "rejected": now[worse], "margin": margin, "accuracy": right}
    return {name: round(values.mean().item(), 4) for name, values in found.items()}


def measured(policy: nn.Module, start: nn.Module, pairs: Pairs, seed: int) -> dict[str, float]:
    """``MEASURES``: means a reply of sampled replies to held-out questions, those of ppo_kl,
    ``KL`` to the start in nats a reply, and what ``read_pairs`` says."""
    tokenizer = shipped("instruct")[1]
    replies = rlhf.ask_held_out(policy, tokenizer, seed, ppo_kl.ASKED)
    found = rlhf.figures(replies)
    found["KL"] = rlhf.kl_to(policy, start, replies, tokenizer.pad_token_id)
    found |= read_pairs(policy, pairs)
    return {name: round(found[name], 4) for name in MEASURES}


def rankings_by(policy: nn.Module, seed: int, number: int, rounds: int) -> list[Ranking]:
    """Round ``number`` of rankings of a policy's replies by the seed's labellers; the first are
    those that all other settings begin with, too."""
    each = RANKINGS // rounds
    if number == 0:
        return guests.rankings_of(seed, RANKINGS)[:each]
    return rlhf.collect_rankings(policy, shipped("instruct")[1], preferences.panel(seed), each,
                                 seed + 10_000 * number)  # fmt: skip


def run(setting: dict, seed: int) -> dict[str, float]:
    """``MEASURES`` at the end, and ``chosen`` and ``rejected`` after a third and two thirds of the
    steps (``"chosen 60"``)."""
    policy, tokenizer = guests.policy_of(seed), shipped("instruct")[1]
    if not setting:
        return measured(policy, policy, held_out_pairs(seed), seed)
    small, rounds = setting.get("small", False), setting.get("rounds", 1)
    steps = (SMALL_STEPS if small else STEPS) // rounds
    course: dict[str, float] = {}

    def watch(tuned: nn.Module, step: int) -> dict[str, float]:
        if step < steps and rounds == 1 and not small:
            now = read_pairs(tuned, held_out_pairs(seed))
            course.update({f"{name} {step}": now[name] for name in ("chosen", "rejected")})
        return {}

    tuned = policy
    for number in range(rounds):
        rankings = (guests.rankings_of(seed, SMALL_RANKINGS if small else RANKINGS)
                    if rounds == 1 else rankings_by(tuned, seed, number, rounds))  # fmt: skip
        tuned, _ = rlhf.tune_by_dpo(
            tuned, tokenizer, rankings, seed, beta=setting["beta"], steps=steps, lr=LR,
            batch_size=BATCH, reference=policy, watch=watch, watch_every=STEPS // 3,
        )  # fmt: skip
    return measured(tuned, policy, held_out_pairs(seed), seed) | course


# --- figures ------------------------------------------------------------------------------------


def betas(results: Results) -> list[str]:
    """The settings that differ in β alone."""
    return [setting for setting in results.settings if setting.startswith("beta ")]


def draw(results: Results):
    """Truth, KL and accuracy against β, with 99 % intervals; the start's truth as a line."""
    labels = {"truth": "truth", "KL": "KL (nats a reply)", "accuracy": "accuracy (held-out pairs)"}
    fig, axes = plotting.panels("What β does", 3, size=(9, 3.2))
    names = betas(results)
    at = [float(name.split()[1]) for name in names]
    for ax, (measure, label) in zip(axes, labels.items(), strict=True):
        bands = [mean_interval(results.of(name, measure).values) for name in names]
        ax.plot(at, [b[0] for b in bands], marker="o", color=plotting.COLOURS["blue"])
        ax.fill_between(at, [b[1] for b in bands], [b[2] for b in bands], alpha=0.2,
                        color=plotting.COLOURS["blue"], linewidth=0)  # fmt: skip
        ax.set(xscale="log", xlabel="β", ylabel=label)
        ax.set_xticks(at, [f"{beta:g}" for beta in at])
        ax.minorticks_off()
    axes[0].axhline(results.of("start", "truth").mean, color=plotting.INK, linestyle=":")
    return fig


def draw_frontier(results: Results, ppo: Results):
    """Truth against the root of the KL: DPO at each β, PPO at each weight, best-of-n."""
    fig, ax = plotting.figure("Truth against the distance from the start",
                              "√KL (KL in nats a reply)", "truth", size=(8.4, 4.2))  # fmt: skip

    def point(setting: str) -> tuple[float, float]:
        return math.sqrt(max(results.of(setting, "KL").mean, 0)), results.of(setting, "truth").mean

    roots, truths = zip(*[point("start"), *map(point, reversed(betas(results)))])
    ax.plot(roots, truths, marker="o", color=plotting.COLOURS["blue"], label="DPO, β from ∞ down")
    ax.plot(*point("on-policy"), marker="*", markersize=12, linestyle="none",
            label="DPO, on-policy", color=plotting.COLOURS["orange"])  # fmt: skip
    for number, setting in enumerate([*ppo_kl.weights(ppo), "best of n"]):
        kls, means = (ppo_kl.course_of(ppo, setting, measure)[1] for measure in ("KL", "truth"))
        ax.plot([math.sqrt(max(kl, 0)) for kl in kls], means, markersize=4, linewidth=1,
                linestyle="--", marker=plotting.MARKERS[number + 1],
                label=setting.replace("kl", "PPO, weight"))  # fmt: skip
    ax.set_xlim(-0.1, 5)
    fig.legend(loc="outside right center")
    return fig


def draw_pairs(results: Results):
    """log π of the better and the worse held-out reply over the steps, a panel for each of two β,
    with 99 % intervals."""
    shown = betas(results)[1::2]
    fig, axes = plotting.panels("Clean pairs that no training saw", 2, size=(9, 3.4), sharey=True)
    for ax, setting in zip(axes, shown, strict=True):
        for measure, colour, label in (("chosen", "blue", "better reply"),
                                       ("rejected", "orange", "worse reply")):  # fmt: skip
            at = [0, STEPS // 3, 2 * STEPS // 3, STEPS]
            names = [f"{measure} {step}" for step in at[1:3]]
            found = [results.of("start", measure), *(results.of(setting, n) for n in names),
                     results.of(setting, measure)]  # fmt: skip
            bands = [mean_interval(f.values) for f in found]
            ax.plot(at, [b[0] for b in bands], marker="o", color=plotting.COLOURS[colour],
                    label=label)  # fmt: skip
            ax.fill_between(at, [b[1] for b in bands], [b[2] for b in bands], alpha=0.2,
                            color=plotting.COLOURS[colour], linewidth=0)  # fmt: skip
        ax.set(title=setting.replace("beta", "β ="), xlabel="step", ylabel="log π (nats a reply)")
        ax.legend()
    return fig

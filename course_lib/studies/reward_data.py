"""What a reward model learns from more or fewer rankings, and from more or less consistent ones.

Every model has the same number of steps, so fewer rankings come back more often. All are asked
about the same pairs of replies to held-out questions. There the labellers' preference is known as a
probability, so what their noise permits is known too: the share of comparisons that a judge gets
who always names the reply that more of them would prefer.
"""

import random
from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib import plotting, reward, rlhf
from course_lib.measuring import mean_interval
from course_lib.rlhf import Ranking, Reply
from course_lib.studies import guests
from course_lib.studies.stored import Results
from course_lib.studies.tuning import shipped
from course_lib.world import preferences
from course_lib.world.preferences import Labeller, panel

STANDARD, NOISE = f"{guests.RANKINGS} rankings", 0.5
GRID = {
    STANDARD: {},
    "noise 2": {"noise": 2.0},
    "100 rankings": {"count": 100},
    "25 rankings": {"count": 25},
}
"""``noise`` is the labellers'; the first has 0.5."""
SEEDS = range(8)
MODELS = ("instruct",)
USES = (
    guests, preferences, rlhf.tune_on_demonstrations, rlhf.demonstration_rows, rlhf.sample_replies,
    rlhf.read_reply, rlhf.collect_rankings, rlhf.rank_again, rlhf._cut, rlhf.RankingBatches,
    rlhf.train_reward_model, rlhf.score_replies, reward.ranking_loss, reward.bradley_terry_loss,
    reward.score_rows, reward.last_token_scores, reward.accuracy, reward.collate_rankings,
    reward.expected_calibration_error,
)  # fmt: skip
CHECKS = {"100 rankings": ("accuracy",)}
LEAST_SPREAD = {"accuracy": 0.01, "of what noise permits": 0.01, "nats": 0.02, "ece": 0.01}
BINS = 5


def labelled(seed: int, count: int, noise: float) -> list[Ranking]:
    """The rankings that a setting's reward model learns from; the same replies at any noise."""
    rankings = guests.rankings_of(seed, count)
    if noise == NOISE:
        return rankings
    groups = [[reply for reply, _ in ranking] for ranking in rankings]
    return rlhf.rank_again(groups, panel(seed, noise=noise), seed)


def preferred(labellers: Sequence[Labeller], one: Reply, other: Reply) -> float:
    """How often a labeller, drawn anew each time, prefers the first reply."""
    chances = [who.prefers(one.judgement, other.judgement) for who in labellers]
    return sum(chances) / len(chances)


def held_out_pairs(seed: int) -> list[tuple[Reply, Reply]]:
    """Every two replies to one held-out question, whether or not one is better; which of them is
    named first is drawn."""
    rng, pairs = random.Random(f"order of pairs {seed}"), []
    for ranking in guests.held_out_rankings(seed):
        replies = [reply for reply, _ in ranking]
        pairs += [rng.sample(two, 2) for two in combinations(replies, 2)]
    return pairs


def scores_of(reward_model, pairs: Sequence[tuple[Reply, Reply]]) -> Tensor:
    """(P, 2): the scores of both replies of each pair, each reply read once."""
    replies = list({id(reply): reply for pair in pairs for reply in pair}.values())
    found = rlhf.score_replies(reward_model, shipped("instruct")[1], replies)
    score = dict(zip(map(id, replies), found, strict=True))
    return torch.tensor([[score[id(a)], score[id(b)]] for a, b in pairs])


def clean_accuracy(pairs: Sequence[tuple[Reply, Reply]], scores: Tensor) -> float:
    """Of the pairs, one of them truly better, the share whose better reply has the higher score.

    Args:
        scores: (P, 2), of ``scores_of``.
    """
    gaps = torch.tensor([a.truth - b.truth for a, b in pairs])  # (P,)
    leads = (scores[:, 0] - scores[:, 1]) * gaps.sign()  # (P,): of the better reply
    return float((leads[gaps != 0] > 0).double().mean())


def reliability(margins: Tensor, chances: Tensor, bins: int = BINS) -> list[tuple]:
    """As ``reward.calibration``, in bins of as many pairs each, the surest last.

    Args:
        margins: (P,), r_i - r_j. A pair is turned round where it is negative.
        chances: (P,), how often i is preferred.

    Returns:
        Of each bin (mean predicted probability, share preferred, number of pairs).
    """
    predicted = margins.abs().sigmoid()  # (P,): from 1/2 on
    won = torch.where(margins >= 0, chances, 1 - chances)  # (P,)
    order = predicted.argsort()
    return [(float(predicted[i].mean()), float(won[i].mean()), len(i))
            for i in order.tensor_split(bins)]  # fmt: skip


def against_labellers(margins: Tensor, chances: Tensor) -> dict[str, float]:
    """What a new comparison by these labellers says of the model, in expectation.

    Args:
        margins: (P,), r_i - r_j.
        chances: (P,), how often i is preferred.

    Returns:
        ``agrees``: share of comparisons that the model's order foretells, ties counted half;
        ``permitted``: the same of the best judge there is; ``nats``: loss of a comparison, and
        ``least nats``: that of a judge who knows all chances; ``ece``, and the bins of
        ``reliability``.
    """
    margins, chances = margins.double(), chances.double()
    said = 0.5 + 0.5 * margins.sign()  # (P,): 1, 0, or 1/2 of a tie
    agrees = float((said * chances + (1 - said) * (1 - chances)).mean())
    permitted = float(torch.maximum(chances, 1 - chances).mean())
    losses = -chances * F.logsigmoid(margins) - (1 - chances) * F.logsigmoid(-margins)  # (P,)
    least = torch.special.entr(chances) + torch.special.entr(1 - chances)  # (P,)
    rows = reliability(margins, chances)
    return {
        "agrees": agrees, "permitted": permitted, "of what noise permits": agrees / permitted,
        "nats": float(losses.mean()), "least nats": float(least.mean()),
        "ece": reward.expected_calibration_error(rows),
        **{f"predicted {i}": row[0] for i, row in enumerate(rows)},
        **{f"preferred {i}": row[1] for i, row in enumerate(rows)},
    }  # fmt: skip


def measures_of(reward_model, seed: int, noise: float = NOISE) -> dict[str, float]:
    """``accuracy`` of ``clean_accuracy``, and all of ``against_labellers``."""
    pairs, labellers = held_out_pairs(seed), panel(seed, noise=noise)
    scores = scores_of(reward_model, pairs)  # (P, 2)
    chances = torch.tensor([preferred(labellers, a, b) for a, b in pairs])  # (P,)
    return {"accuracy": clean_accuracy(pairs, scores),
            **against_labellers(scores[:, 0] - scores[:, 1], chances)}  # fmt: skip


def run(setting: dict, seed: int) -> dict[str, float]:
    """One row: see ``measures_of``."""
    noise = setting.get("noise", NOISE)
    rankings = labelled(seed, setting.get("count", guests.RANKINGS), noise)
    model = rlhf.train_reward_model(guests.policy_of(seed), shipped("instruct")[1], rankings, seed,
                                    steps=guests.STEPS)  # fmt: skip
    return measures_of(model, seed, noise)


def draw(results: Results):
    """Accuracy on clean pairs, and on the labellers' comparisons beside what these permit."""
    fig, axes = plotting.panels("What the rankings teach", 2, size=(8.6, 3.4))
    for ax, measure, label in zip(axes, ("accuracy", "agrees"), (
            "right on clean pairs (share)", "foretold comparisons (share)")):  # fmt: skip
        for y, setting in enumerate(results.settings):
            mean, low, high = mean_interval(results.of(setting, measure).values)
            ax.errorbar(mean, y, xerr=[[mean - low], [high - mean]], marker="o", capsize=4,
                        linestyle="none", color=plotting.COLOURS["blue"])  # fmt: skip
            if measure == "agrees":
                ax.plot(results.of(setting, "permitted").mean, y, marker="|", markersize=18,
                        markeredgewidth=3, color=plotting.COLOURS["orange"])  # fmt: skip
        ax.set_yticks(range(len(results.settings)), results.settings if ax is axes[0] else [])
        ax.set_ylim(len(results.settings) - 0.5, -0.5)
        ax.set_xlabel(label)
        ax.set_xlim(0.48, 1.02)
        ax.axvline(0.5, color=plotting.INK, linestyle=":")
    return fig


def draw_reliability(results: Results, settings=(STANDARD, "100 rankings", "25 rankings")):
    """What the models say beside what labellers do, one line a setting, means over the seeds."""
    fig, ax = plotting.figure("What the model says, and what labellers do",
                              "predicted probability of the likelier reply",
                              "how often labellers prefer it (share)", size=(6.4, 4))  # fmt: skip
    ax.plot([0.5, 1], [0.5, 1], color=plotting.INK, linestyle=":", label="calibrated")
    for setting, marker in zip(settings, plotting.MARKERS):
        x, y = ([results.of(setting, f"{name} {i}").mean for i in range(BINS)]
                for name in ("predicted", "preferred"))  # fmt: skip
        ax.plot(x, y, marker=marker, label=setting)
    ax.legend(loc="upper left")
    return fig

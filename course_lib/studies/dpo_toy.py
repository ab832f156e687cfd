"""DPO on a policy whose 31 responses can be counted: does it end at the exact optimum?

Policies and scores are those of the study ppo_toy. Two responses of the reference are compared, and
each is preferred with the probability that Bradley and Terry's model gives to the difference of
their scores, or the one with the higher score always ("certain"). Pairs are drawn anew for every
step ("fresh"), or 2,000 are drawn once and read again and again.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from course_lib import plotting
from course_lib.dpo import dpo_loss, pair_logps, pair_loss
from course_lib.enumeration import (
    completions,
    exact_optimum,
    kl_divergence,
    policy_distribution,
)
from course_lib.pairs import Pair, PairBatch, PairBatches, collate_pairs
from course_lib.studies import ppo_toy
from course_lib.studies.ppo_toy import ALL, END, PROMPT
from course_lib.studies.stored import Results
from course_lib.training import train

GRID = {
    "fresh, beta 1": {"beta": 1.0},
    "fresh, beta 0.5": {"beta": 0.5},
    "2,000 pairs, beta 1": {"beta": 1.0, "count": 2000},
    "2,000 pairs, beta 0.5": {"beta": 0.5, "count": 2000},
    "certain, DPO": {"beta": 0.5, "certain": True},
    "certain, IPO": {"beta": 0.5, "certain": True, "loss_type": "ipo_sum"},
}
SEEDS = range(8)
MODELS = ()
USES = (completions, exact_optimum, kl_divergence, policy_distribution, dpo_loss, pair_logps,
        pair_loss, collate_pairs, PairBatches, ppo_toy.reference, ppo_toy.scores_of)  # fmt: skip
CHECKS = {"fresh, beta 1": ("KL to optimum",)}
LEAST_SPREAD = {"KL to optimum": 0.0003}
BATCH, STEPS, LR = 512, 400, 6e-3


def draw_pairs(
    probs: Tensor, scores: Tensor, count: int, generator: Generator, certain: bool = False
) -> Tensor:
    """Numbers of two different responses in ``ALL``, the preferred one first, (count, 2)."""
    two = torch.multinomial(probs, 4 * count, replacement=True, generator=generator).view(-1, 2)
    while len(two := two[two[:, 0] != two[:, 1]]) < count:
        more = torch.multinomial(probs, 2 * count, replacement=True, generator=generator)
        two = torch.cat([two, more.view(-1, 2)])
    two = two[:count]
    gap = scores[two[:, 0]] - scores[two[:, 1]]  # (count,)
    chance = (gap > 0).float() if certain else torch.sigmoid(gap)
    first = torch.rand(count, generator=generator) < chance
    return torch.where(first[:, None], two, two.flip(1))


def as_pairs(numbers: Tensor) -> list[Pair]:
    """The pairs of token ids that these are."""
    return [Pair(PROMPT, ALL[chosen], ALL[rejected]) for chosen, rejected in numbers.tolist()]


def fresh(
    probs: Tensor, scores: Tensor, generator: Generator, certain: bool
) -> Iterator[PairBatch]:  # fmt: skip
    """Endless batches of pairs that nobody has seen."""
    logps = probs.log().float()
    while True:
        numbers = draw_pairs(probs, scores, BATCH, generator, certain)
        yield collate_pairs(as_pairs(numbers), END, (logps[numbers[:, 0]], logps[numbers[:, 1]]))


def sample_loss(probs: Tensor, ref_probs: Tensor, numbers: Tensor, beta: float) -> float:
    """The mean of DPO's loss over pairs, of a policy that is given by its probabilities, (31,)."""
    logps, ref = (p.log()[numbers] for p in (probs, ref_probs))  # (n, 2)
    return dpo_loss(*logps.unbind(1), *ref.unbind(1), beta)[0].mean().item()


def optimum_of(setting: dict, before: Tensor, scores: Tensor) -> Tensor:
    """What the loss looks for, (31,). IPO's is the reference tilted by how often a response wins
    against one of the reference's (Azar et al., 2024, section 5)."""
    if setting.get("loss_type") == "ipo_sum":
        wins = (scores[:, None] > scores[None, :]).double() @ before
        scores = wins + before / 2  # a tie with itself is half a win
    return exact_optimum(before, scores, setting["beta"])


def run(setting: dict, seed: int) -> dict[str, float]:
    """``KL to optimum`` of the tuned policy and of its start, and its KL to the start (``moved``),
    in nats; of 2,000 pairs also by how much the loss on them is lower than that of the optimum
    (``below the optimum``)."""
    ref, scores, beta = ppo_toy.reference(seed), ppo_toy.scores_of(seed), setting["beta"]
    certain, count = setting.get("certain", False), setting.get("count")
    before = policy_distribution(ref, PROMPT, ALL)
    best = optimum_of(setting, before, scores)
    generator = Generator().manual_seed(seed)
    stream = fresh(before, scores, generator, certain)
    if count:
        numbers = draw_pairs(before, scores, count, generator, certain)
        logps = before.log().float()[numbers]  # (count, 2)
        stream = PairBatches(as_pairs(numbers), logps.unbind(1), END, BATCH, generator)
    model = copy.deepcopy(ref)
    train(model, stream, pair_loss(beta, loss_type=setting.get("loss_type", "sigmoid")),
          max_steps=STEPS, lr=LR, progress=False)  # fmt: skip
    found = policy_distribution(model, PROMPT, ALL)
    measures = {"KL to optimum": kl_divergence(found, best),
                "KL at the start": kl_divergence(before, best),
                "moved": kl_divergence(found, before)}  # fmt: skip
    if count:
        measures["below the optimum"] = (sample_loss(best, before, numbers, beta)
                                         - sample_loss(found, before, numbers, beta))  # fmt: skip
    return measures


def draw(results: Results):
    """The distance from the optimum before and after DPO, a point a seed, where preferences are
    those of Bradley and Terry."""
    fig, ax = plotting.figure("How far from the exact optimum", "KL to π* (nats)", "pairs",
                              size=(7.4, 3.2))  # fmt: skip
    names = [name for name in results.settings if "certain" not in name]
    kinds = (("KL at the start", "orange", "s", "reference"),
             ("KL to optimum", "blue", "o", "after DPO"))  # fmt: skip
    for measure, colour, marker, label in kinds:
        for y, setting in enumerate(names):
            values = list(results.of(setting, measure))
            ax.plot([max(v, 1e-6) for v in values], [y] * len(values), linestyle="none",
                    marker=marker, color=plotting.COLOURS[colour], alpha=0.7,
                    label=None if y else label)  # fmt: skip
    ax.axvline(0.01, color=plotting.INK, linestyle=":")
    ax.set_xscale("log")
    ax.set_yticks(range(len(names)), [name.replace("beta", "β =") for name in names])
    ax.set_ylim(len(names) - 0.4, -0.9)
    ax.legend(loc="upper center", ncols=2)
    return fig

"""Chapter 10's own run: DPO on the rankings of chapter 9's, from the same start.

Sixteen seeds, as in ``ppo_live``, so that a run that learnt nothing can be told.
"""

from functools import lru_cache

from course_lib import plotting, rlhf
from course_lib.studies import dpo_guests, guests, ppo_live
from course_lib.studies.dpo_guests import Pairs
from course_lib.studies.stored import Results
from course_lib.studies.tuning import shipped
from course_lib.world.preferences import Labeller

GRID = {"live": {}}
SEEDS = ppo_live.SEEDS
MODELS = ("instruct",)
USES = (*dpo_guests.USES, dpo_guests.pairs_in, dpo_guests.read_pairs, dpo_guests.measured,
        ppo_live.policy_of, ppo_live.rankings_of)  # fmt: skip
CHECKS = {"live": ("truth", "honest")}
LEAST_SPREAD = {"truth": 0.1, "honest": 0.02}
BETA, STEPS, LR, BATCH, WARMUP = 0.2, 80, 3e-4, 16, 10
HELD_OUT = 50
"""Clean rankings about held-out places."""


@lru_cache(guests.KEPT)
def held_out_pairs(seed: int) -> Pairs:
    """The pairs of clean rankings of the start's replies, as in ``guests.held_out_rankings``."""
    start = ppo_live.policy_of(seed)
    rankings = rlhf.collect_rankings(start, shipped("instruct")[1], [Labeller(noise=0)], HELD_OUT,
                                     500 + seed, cut=0.0, held_out=True)  # fmt: skip
    return dpo_guests.pairs_in(rankings, start)


def run(setting: dict, seed: int) -> dict[str, float]:
    """``dpo_guests.MEASURES`` after DPO, and ``"truth at the start"`` ... before it."""
    start, pairs = ppo_live.policy_of(seed), held_out_pairs(seed)
    policy, _ = rlhf.tune_by_dpo(
        start, shipped("instruct")[1], ppo_live.rankings_of(seed), seed, beta=BETA, steps=STEPS,
        lr=LR, batch_size=BATCH, warmup_steps=WARMUP,
    )  # fmt: skip
    before = dpo_guests.measured(start, start, pairs, seed)
    after = dpo_guests.measured(policy, start, pairs, seed)
    return after | {f"{name} at the start": value for name, value in before.items()}


def draw(results: Results):
    """Margin and truth of the runs, a point a seed."""
    fig, ax = plotting.figure("Sixteen runs of DPO", "truth", "margin (nats)", size=(6, 3.4))
    for end, marker, colour, label in ((" at the start", "s", "orange", "the start"),
                                       ("", "o", "blue", "after DPO")):  # fmt: skip
        ax.plot(results.of("live", f"truth{end}").values, results.of("live", f"margin{end}").values,
                marker, alpha=0.6, color=plotting.COLOURS[colour], label=label)  # fmt: skip
    ax.legend()
    return fig

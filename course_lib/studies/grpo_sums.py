"""GRPO on sums with a verifier: what it reaches, with what settings, and what it does not.

All runs of a seed begin with the start of ``sums``, read the same problems in the same order and
see 96 responses an update. "main" is watched, and is twice as long as the others; "beyond" trains
on more numbers than the base model adds in any wording. "groups" trains nothing: it draws groups
from the start, to compare the share of dead ones with the formula.
"""

import copy
from statistics import fmean

import torch
from torch import Generator, nn

from course_lib import plotting, reasoning
from course_lib.grpo import (
    GRPOSettings,
    aggregate,
    dead_share,
    group_advantages,
    grpo_loss,
    token_losses,
)
from course_lib.grpo_rollouts import GRPORollouts
from course_lib.live_rollouts import LiveRollouts, read_responses
from course_lib.measuring import mean_interval, pass_at_k
from course_lib.ppo import PPOSettings, gae, per_token_rewards, policy_loss, ppo_loss, value_loss
from course_lib.ppo_rollouts import ActorCritic, PPORollouts
from course_lib.studies import sums
from course_lib.studies.stored import Results
from course_lib.studies.tuning import shipped
from course_lib.training import train
from course_lib.world import arithmetic, verifiers
from course_lib.world.verifiers import VERIFIERS

SIZES = (2, 4, 8, 16)
"""Responses of a group."""
GRID = {
    "main": {"main": True},
    **{f"group {size}": {"group_size": size} for size in (2, 16)},  # 8 in "main"
    "rate 5e-5": {"lr": 5e-5},
    "rate 1e-3": {"lr": 1e-3},
    "no std": {"std": None},
    "sloppy": {"verifier": "sloppy"},
    "answer and format": {"verifier": "both"},
    "ppo": {"ppo": True},
    "beyond": {"operands": 8},
    "groups": {"groups": True},
}
SEEDS = range(8)
MODELS = ("base",)
USES = (
    sums, reasoning, verifiers, arithmetic.draw_problem, GRPOSettings, grpo_loss, token_losses,
    aggregate, group_advantages, GRPORollouts, LiveRollouts, read_responses,
    pass_at_k, per_token_rewards, gae, policy_loss, value_loss, ppo_loss, ActorCritic,
    PPORollouts,
)  # fmt: skip
CHECKS = {}
CHECKED_BY = "grpo_live"
RESPONSES, UPDATES, MAIN_UPDATES, EVERY, LR = 96, 20, 40, 10, 2e-4
TRAINED, BEYOND = 5, 8
"""Operands that are trained on, and those of "beyond"."""
KEPT = ("score", "dead", "length", "entropy")  # of the rollouts
LATE = 4
"""The last rollouts, over which ``late score`` is the mean."""


# --- runs ---------------------------------------------------------------------------------------


def tuned(
    seed: int, *, verifier: str = "exact answer", lr: float = LR, updates: int = UPDATES,
    operands: int = TRAINED, responses: int = RESPONSES, watch=None, **changes,
) -> tuple[nn.Module, list[dict]]:  # fmt: skip
    """The policy after GRPO and the history of its rollouts; ``changes`` are of the settings."""
    tokenizer = shipped("base")[1]
    settings = reasoning.grpo_settings(minibatch_size=responses, **changes)
    policy, history, _ = reasoning.tune_by_grpo(
        sums.start_of(seed), tokenizer, reasoning.scorer(VERIFIERS[verifier], tokenizer), seed,
        operands=operands, updates=updates, lr=lr, groups=responses // settings.group_size,
        settings=settings, watch=watch, watch_every=EVERY,
    )  # fmt: skip
    return policy, history


PPO = PPOSettings(max_new_tokens=reasoning.ROOM, minibatch_size=RESPONSES, epochs=1, kl_coef=0.0,
                  gae_lambda=1.0, vf_clip_eps=None)  # fmt: skip
"""As many steps and responses as GRPO has; one response a prompt."""


def tuned_by_ppo(seed: int, updates: int = UPDATES) -> tuple[nn.Module, list[dict]]:
    """The policy after PPO with a critic's head on its trunk, and the history of its rollouts."""
    start, tokenizer = sums.start_of(seed), shipped("base")[1]
    asked = (reasoning.prompt_ids(tokenizer, problem)
             for problem in reasoning.problems(seed, TRAINED))  # fmt: skip
    model = ActorCritic(copy.deepcopy(start))
    stream = PPORollouts(
        model, start, asked, reasoning.scorer(VERIFIERS["exact answer"], tokenizer), PPO,
        batch_size=RESPONSES, eos_token_id=tokenizer.eos_token_id,
        generator=Generator().manual_seed(seed),
    )  # fmt: skip
    train(model, stream, ppo_loss(PPO), max_steps=updates, lr=LR, schedule="constant",
          progress=False)  # fmt: skip
    return model.policy.eval(), stream.history


def dead_groups_of(seed: int, count: int = 96) -> dict[str, float]:
    """Of the start's responses to held-out problems, for each size: the share of dead groups
    (``dead 8``), and what the formula expects with each problem's own p (``own p 8``), and with the
    mean p (``mean p 8``). The groups and the p come from different responses.

    p^G is estimated without bias by the share of right ones among all sets of G responses.
    """
    largest, tokenizer = max(SIZES), shipped("base")[1]
    asked = sums.held_out(seed, TRAINED, count)
    texts = reasoning.sample_texts(
        sums.start_of(seed), tokenizer, asked, each=2 * largest, temperature=1.0,
        generator=Generator().manual_seed(seed))  # fmt: skip
    right = [[VERIFIERS["exact answer"](problem, text) == 1 for text in some]
             for problem, some in zip(asked, texts)]  # fmt: skip
    known = [sum(row[:largest]) for row in right]  # right ones among the first half
    rest, found = [row[largest:] for row in right], {}
    mean = sum(known) / (largest * count)
    for size in SIZES:
        groups = [row[i : i + size] for row in rest for i in range(0, largest, size)]
        found[f"dead {size}"] = fmean(len(set(group)) == 1 for group in groups)
        found[f"own p {size}"] = fmean(
            2 - pass_at_k(largest, c, size) - pass_at_k(largest, largest - c, size) for c in known
        )
        found[f"mean p {size}"] = mean**size + (1 - mean) ** size
    return found | {"p": mean}


def noted(history: list[dict]) -> dict[str, float]:
    """``"score 1"`` ... of each rollout, and ``late score``."""
    found = {f"{name} {u + 1}": round(row[name], 4) for u, row in enumerate(history)
             for name in KEPT if name in row}  # fmt: skip
    return found | {"late score": fmean(row["score"] for row in history[-LATE:])}


def run(setting: dict, seed: int) -> dict[str, float]:
    """``noted`` of the rollouts; after the last update ``sums.written`` and ``"accuracy 5 after
    20"``, ``nats`` of the worked solutions; of "main" before, during and after, the other numbers
    of operands, other wordings and pass@k of 5 and 8 numbers, too (``"pass@4 of 5 after 25"``); of
    "beyond" pass@k of 8."""
    if "groups" in setting:
        return dead_groups_of(seed)
    if "ppo" in setting:
        policy, history = tuned_by_ppo(seed)
    elif "main" in setting:
        return run_main(seed)
    else:
        policy, history = tuned(seed, **setting)
    end = len(history)
    found = noted(history) | sums.written(policy, seed)
    found |= at(end, sums.accuracies(policy, seed, (TRAINED,)))
    found["nats"] = sums.nats(policy, seed)
    if "operands" in setting:
        found |= at(end, sums.accuracies(policy, seed, (BEYOND,)))
        found |= at(end, sums.passes(policy, seed, BEYOND))
    return found


def run_main(seed: int) -> dict[str, float]:
    """The row of "main"."""
    course: dict[str, float] = {}

    def watch(policy: nn.Module, update: int) -> dict:
        ends = update in (0, MAIN_UPDATES)
        every = ends or update == EVERY
        course.update(at(update, sums.accuracies(policy, seed, *[] if every else [(TRAINED,)])))
        if ends:
            course.update(at(update, sums.other_wordings(policy, seed)))
            course.update(at(update, sums.passes(policy, seed, TRAINED)))
            course.update(at(update, sums.passes(policy, seed, BEYOND)))
        return {}

    watch(sums.start_of(seed), 0)
    policy, history = tuned(seed, updates=MAIN_UPDATES, watch=watch)
    return course | noted(history) | sums.written(policy, seed) | {"nats": sums.nats(policy, seed)}


def at(update: int, found: dict[str, float]) -> dict[str, float]:
    """The same under names that say after how many updates."""
    return {f"{name} after {update}": value for name, value in found.items()}


# --- figures ------------------------------------------------------------------------------------


def _band(ax, x, of_seeds, label: str, number: int) -> None:
    """A line through the means, with their 99 % intervals."""
    bands = [mean_interval(values.values) for values in of_seeds]
    (line,) = ax.plot(x, [b[0] for b in bands], marker=plotting.MARKERS[number], markersize=4,
                      label=label)  # fmt: skip
    ax.fill_between(x, [b[1] for b in bands], [b[2] for b in bands], alpha=0.15, linewidth=0,
                    color=line.get_color())  # fmt: skip


def draw(results: Results):
    """Accuracy by the number of operands before, during and after the main run."""
    fig, ax = plotting.figure("Held-out sums, trained on five operands", "operands",
                              "share right", size=(7, 3.6))  # fmt: skip
    numbers = range(2, 9)
    for number, update in enumerate((0, EVERY, MAIN_UPDATES)):
        found = [results.of("main", f"accuracy {n} after {update}") for n in numbers]
        _band(ax, numbers, found, f"after {update} updates", number)
    ax.axvline(TRAINED, color=plotting.INK, linestyle=":")
    ax.legend()
    return fig


def draw_course(results: Results):
    """Accuracy, dead groups and length over the updates of the main run."""
    fig, axes = plotting.panels("The main run", 3, size=(9, 3.2))
    at_updates = range(0, MAIN_UPDATES + 1, EVERY)
    _band(axes[0], at_updates, [results.of("main", f"accuracy {TRAINED} after {u}")
                                for u in at_updates], "", 0)  # fmt: skip
    updates = range(1, MAIN_UPDATES + 1)
    for ax, name in zip(axes[1:], ("dead", "length"), strict=True):
        _band(ax, updates, [results.of("main", f"{name} {u}") for u in updates], "", 0)
    for ax, label in zip(axes, ("share right, held out", "share of dead groups",
                                "tokens a response"), strict=True):  # fmt: skip
        ax.set(xlabel="update", ylabel=label)
    return fig


def draw_scores(results: Results, title: str, panels: list[dict[str, str]]):
    """The share of right responses in the rollouts, {setting: label} a panel, for 20 updates."""
    fig, axes = plotting.panels(title, len(panels), size=(9, 3.4), sharey=True)
    updates = range(1, UPDATES + 1)
    for ax, settings in zip(axes, panels, strict=True):
        for number, (setting, label) in enumerate(settings.items()):
            means = [results.of(setting, f"score {u}").mean for u in updates]
            ax.plot(updates, means, marker=plotting.MARKERS[number], markersize=3, label=label)
        ax.set(xlabel="update", ylabel="score of the rollouts")
        ax.legend()
    return fig


def draw_careless(results: Results):
    """Score and length of the rollouts under three verifiers."""
    fig, axes = plotting.panels("What the verifier looks at", 2, size=(9, 3.4))
    names = {"main": "exact answer", "sloppy": "the number anywhere",
             "answer and format": "answer and form"}  # fmt: skip
    updates = range(1, UPDATES + 1)
    for ax, (measure, label) in zip(
        axes, {"score": "score of the rollouts", "length": "tokens a response"}.items(), strict=True
    ):
        for number, (setting, name) in enumerate(names.items()):
            _band(ax, updates, [results.of(setting, f"{measure} {u}") for u in updates], name,
                  number)  # fmt: skip
        ax.set(xlabel="update", ylabel=label)
    axes[1].legend()
    return fig


def draw_dead(results: Results):
    """The share of dead groups against the formula: p^G + (1 - p)^G on the left, and measured."""
    fig, axes = plotting.panels("Groups that teach nothing", 2, size=(9, 3.4))
    p = torch.linspace(0, 1, 101)
    for size in SIZES:
        axes[0].plot(p, dead_share(p, size), label=f"G = {size}")
    axes[0].set(xlabel="p of the prompt", ylabel="probability of a dead group")
    axes[0].legend()
    names = {"dead": "measured", "own p": "formula, each prompt's p", "mean p": "formula, mean p"}
    for number, (name, label) in enumerate(names.items()):
        _band(axes[1], SIZES, [results.of("groups", f"{name} {size}") for size in SIZES], label,
              number)  # fmt: skip
    axes[1].set(xscale="log", xlabel="responses of a group", ylabel="share of dead groups")
    axes[1].set_xticks(SIZES, list(map(str, SIZES)))
    axes[1].minorticks_off()
    axes[1].set_ylim(0, 1)
    axes[1].legend()
    return fig


def draw_passes(results: Results):
    """pass@k before and after, of a task that the base model can do and of one that it cannot."""
    fig, axes = plotting.panels("Sound steps in at least one of k responses", 2, size=(9, 3.4),
                                sharey=True)  # fmt: skip
    ks = sums.KS
    for ax, n, trained, end in ((axes[0], TRAINED, "main", MAIN_UPDATES),
                                (axes[1], BEYOND, "beyond", UPDATES)):  # fmt: skip
        for number, (setting, update, label) in enumerate((
            ("main", 0, "before"), (trained, end, f"after training on {n} operands"),
        )):  # fmt: skip
            found = [results.of(setting, f"pass@{k} of {n} after {update}") for k in ks]
            _band(ax, ks, found, label, number)
        ax.set(xscale="log", xlabel="k", ylabel="pass@k", title=f"{n} operands")
        ax.set_xticks(ks, list(map(str, ks)))
        ax.minorticks_off()
        ax.legend()
    return fig

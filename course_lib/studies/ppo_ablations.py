"""What a healthy run of PPO logs, three sick ones, and three parts taken out.

Short runs with the reward model of ppo_kl's "small" and everything else as in "healthy":
without the clipping, without a critic (returns in place of advantages), with the critic's head on
the policy's own trunk in place of a copy of the reward model, without the whitening; at a rate that
is too high, without KL, and with a mask in the step that counts the prompt as response.
"""

import copy
from collections.abc import Callable
from statistics import fmean

from torch import Generator, nn

from course_lib import plotting, rlhf
from course_lib.ops import IGNORE_INDEX
from course_lib.ppo import PPOSettings, ppo_loss
from course_lib.ppo_rollouts import ActorCritic, PPORollouts
from course_lib.studies import guests, ppo_kl
from course_lib.studies.stored import Results
from course_lib.studies.tuning import shipped
from course_lib.training import train
from course_lib.world.preferences import questions

GRID = {
    "healthy": {},
    "no clipping": {"clip_eps": None},
    "no critic": {"vf_coef": 0.0, "gae_lambda": 1.0},
    "shared trunk": {"shared_trunk": True},
    "no whitening": {"whiten_advantages": False},
    "rate × 20": {"rate": 20.0},
    "no KL": {"kl_coef": 0.0},
    "wrong mask": {"wrong_mask": True},
}
SEEDS = range(8)
MODELS = ("instruct",)
USES = (*ppo_kl.USES, ppo_kl.measured, ppo_kl.small_reward_model)
CHECKS = {}
CHECKED_BY = "ppo_live"
UPDATES, RESPONSES, LR, WARMUP = 12, 32, 5e-4, 20
LOGGED = ("approx_kl", "clipfrac", "ratio_max", "ratio")  # of the steps
KEPT = ("score", "kl", "entropy", "length", "explained_variance")  # of the rollouts
AT_THE_END = ("truth", "reasons", "proxy", "KL")


def prompt_counted(batch: dict) -> dict:
    """The batch with a mask that keeps every token that is read: a sick run's."""
    mask = batch["attention_mask"].bool()
    labels = batch["input_ids"].masked_fill(~mask, IGNORE_INDEX)
    labels[:, 1:] = labels[:, 1:].masked_fill(~mask[:, :-1], IGNORE_INDEX)
    labels[:, 0] = IGNORE_INDEX  # nothing predicts a first token
    return {**batch, "labels": labels, "response_mask": labels[:, 1:] != IGNORE_INDEX}


class Changed:
    """A live stream whose batches are changed on their way."""

    live = True

    def __init__(self, stream: PPORollouts, change: Callable[[dict], dict]):
        self.stream, self.change = stream, change

    def __iter__(self):
        return map(self.change, self.stream)


def tuned(
    seed: int, settings: PPOSettings, rate: float = 1.0, change: Callable[[dict], dict] = dict,
    shared_trunk: bool = False,
) -> tuple[nn.Module, list[dict], list[dict]]:
    """The policy after PPO, the history of its rollouts, the log of its steps."""
    policy, tokenizer = guests.policy_of(seed), shipped("instruct")[1]
    reward_model = ppo_kl.small_reward_model(seed)
    own = settings.vf_coef and not shared_trunk
    critic = copy.deepcopy(reward_model) if own else None  # None: a head on the trunk, 0 at first
    model = ActorCritic(copy.deepcopy(policy), critic)
    asked = (rlhf.prompt_ids(tokenizer, question) for question in questions(seed))
    stream = PPORollouts(
        model, policy, asked, rlhf.score_with(reward_model, tokenizer), settings,
        batch_size=RESPONSES, eos_token_id=tokenizer.eos_token_id,
        generator=Generator().manual_seed(seed),
    )  # fmt: skip
    steps = settings.epochs * RESPONSES // settings.minibatch_size
    log = train(model, Changed(stream, change), ppo_loss(settings), max_steps=UPDATES * steps,
                lr=rate * LR, warmup_steps=WARMUP, progress=False)  # fmt: skip
    return model.policy, stream.history, log


def run(setting: dict, seed: int) -> dict[str, float]:
    """What was logged in each update (``"entropy 3"``), means over its steps, of ``ratio_max`` the
    largest; ``AT_THE_END`` of held-out questions; ``gain``, by how much the truth rose."""
    changes = {k: v for k, v in setting.items() if k not in ("rate", "wrong_mask", "shared_trunk")}
    settings = rlhf.ppo_settings(minibatch_size=RESPONSES // 2, **changes)
    policy, history, log = tuned(seed, settings, setting.get("rate", 1.0),
                                 prompt_counted if "wrong_mask" in setting else dict,
                                 setting.get("shared_trunk", False))  # fmt: skip
    found, steps = {}, len(log) // UPDATES
    for update in range(UPDATES):
        rows = log[update * steps : (update + 1) * steps]
        for name in LOGGED:
            mean = max if name == "ratio_max" else fmean
            found[f"{name} {update + 1}"] = mean(row[name] for row in rows)
        for name in KEPT:
            found[f"{name} {update + 1}"] = history[update][name]
    start, reward_model = guests.policy_of(seed), ppo_kl.small_reward_model(seed)
    end = ppo_kl.measured(policy.eval(), start, reward_model, seed)
    begin = ppo_kl.measured(start, start, reward_model, seed)
    found = {name: round(value, 4) for name, value in found.items()}
    return found | {name: end[name] for name in AT_THE_END} | {
        "gain": end["truth"] - begin["truth"]}  # fmt: skip


# --- figures ------------------------------------------------------------------------------------

PARTS = ("healthy", "no clipping", "no critic", "shared trunk", "no whitening")
RUNS = ("healthy", "rate × 20", "no KL", "wrong mask")


def draw(results: Results):
    """The truth at the end with a part taken out, a point a seed."""
    fig, ax = plotting.figure("Parts of PPO taken out, one at a time",
                              "truth after 12 short updates", "run", size=(7, 3))  # fmt: skip
    for y, setting in enumerate(PARTS):
        values = results.of(setting, "truth")
        ax.plot(list(values), [y] * len(values), linestyle="none", marker="o", alpha=0.6,
                color=plotting.COLOURS["blue"])  # fmt: skip
        ax.plot(values.mean, y, marker="|", markersize=18, markeredgewidth=3,
                color=plotting.COLOURS["orange"])  # fmt: skip
    ax.set_yticks(range(len(PARTS)), PARTS)
    ax.set_ylim(len(PARTS) - 0.5, -0.5)
    return fig


def draw_logs(results: Results, title: str, names: dict[str, str]):
    """What four runs logged, a panel a number, the mean over the seeds; {number: label}. Axes of
    distances are logarithmic above 10 nats a reply and 0.1 nats a token."""
    logarithmic_above = {"kl": 10, "approx_kl": 0.1}
    fig, axes = plotting.panels(title, len(names), size=(9, 3.3))
    for ax, (name, label) in zip(axes, names.items(), strict=True):
        for number, setting in enumerate(RUNS):
            means = [results.of(setting, f"{name} {u + 1}").mean for u in range(UPDATES)]
            ax.plot(range(1, UPDATES + 1), means, marker=plotting.MARKERS[number], markersize=3,
                    label=setting)  # fmt: skip
        ax.set(xlabel="update", title=label)
        ax.set_xticks([1, 6, 12])
        if name in logarithmic_above:
            ax.set_yscale("symlog", linthresh=logarithmic_above[name])
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(RUNS))
    return fig

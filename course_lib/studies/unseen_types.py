"""How many tasks, and how they are worded, decide how types of task that were never trained do.

Every run has the same steps and rows a step, so more tasks mean fewer examples of each. The order
of the tasks is drawn anew for each seed. FLAN's figures 6 and 8 and its section 4.3 at our scale.
"""

import random

from course_lib import plotting
from course_lib.measuring import mean_interval
from course_lib.studies import splits, tuning
from course_lib.studies.splits import TRAINED, UNSEEN, WORDINGS
from course_lib.world import instructions

MODELS = ("base",)
USES = (splits, instructions, tuning.tuned, tuning.mixture, tuning.chat_replies)
SIZES = (1, 4, 16, len(TRAINED))
ALL = f"{len(TRAINED)} tasks"
GRID = {
    "base": {"tasks": 0},
    **{f"{n} task{'s' * (n > 1)}": {"tasks": n} for n in SIZES},
    "bare inputs": {"tasks": len(TRAINED), "form": "none"},
    "one question": {"tasks": len(TRAINED), "form": "question", "templates": 1},
}
"""``base`` is not trained. The last two have all tasks and other prompts in training."""
SEEDS = range(8)
CHECKS = {ALL: ("corpus", "nats")}
LEAST_SPREAD = dict.fromkeys([*WORDINGS, *(f"{w} after Q and A" for w in WORDINGS)], 0.01)
"""One item of 102."""


def names_of(tasks: int, seed: int) -> list[str]:
    """The tasks that a run is trained on: the first ones of this seed's order."""
    return random.Random(f"order of tasks {seed}").sample(TRAINED, len(TRAINED))[:tasks]


def fit(setting: dict, seed: int):
    """The model of a row."""
    how = {key: value for key, value in setting.items() if key != "tasks"}
    if not setting["tasks"]:
        return splits.frozen()
    rows = splits.task_mixture(names_of(setting["tasks"], seed), seed, **how)
    return splits.tuned_on(rows)


def scores(model, seed: int) -> dict[str, float]:
    """Accuracy on the unseen types in each wording, in the chat format; and the ``nats``.

    The nats are -log p of the whole right reply with its end, to the corpus's question, on average:
    a smooth measure beside the accuracy, which jumps.
    """
    items = {wording: splits.items_of(UNSEEN, wording, seed) for wording in WORDINGS}
    measures = {w: splits.share(splits.in_the_chat(model, some)) for w, some in items.items()}
    rows = [splits.chat_row(item.prompt, item.response) for item in items["corpus"]]
    return measures | {"nats": -splits.logps(model, rows).mean().item()}


def run(setting: dict, seed: int) -> dict[str, float]:
    """``scores``; for the base model also what it answers after ``Q: … A:``."""
    model = fit(setting, seed)
    measures = scores(model, seed)
    if not setting["tasks"]:
        for wording in WORDINGS:
            items = splits.items_of(UNSEEN, wording, seed)
            measures[f"{wording} after Q and A"] = splits.share(splits.after_q_and_a(model, items))
    return measures


NAMES = {"corpus": "the corpus's question", "question": "another question", "command": "a command"}


def draw(results):
    """Accuracy against the number of tasks, with 99 % intervals of the mean."""
    title = "Types of task that were never trained"
    fig, ax = plotting.figure(title, "tasks trained on (logarithmic)", "accuracy", size=(7, 4))
    for i, wording in enumerate(WORDINGS):
        look = {"color": list(plotting.COLOURS.values())[i], "linestyle": plotting.DASHES[i]}
        means, lows, highs = zip(*(
            mean_interval(results.of(f"{n} task{'s' * (n > 1)}", wording).values)
            for n in SIZES), strict=True)  # fmt: skip
        ax.plot(SIZES, means, label=NAMES[wording], marker=plotting.MARKERS[i], **look)
        ax.fill_between(SIZES, lows, highs, alpha=0.2, color=look["color"], linewidth=0)
        top = results.of("base", f"{wording} after Q and A").mean
        ax.axhline(top, linewidth=1, **look)
    ax.text(SIZES[0], 0.93, "thin lines: the base model after “Q: … A:”", fontsize=9)
    ax.set_xscale("log", base=2)
    ax.set_xticks(SIZES, SIZES)
    ax.set_ylim(-0.03, 1.05)
    ax.legend(loc="lower right", fontsize=9)
    return fig


def draw_prompts(results):
    """Accuracy by what the training prompts held, bars with 99 % intervals."""
    kinds = {"bare inputs": "bare inputs", "one question": "one question\na task",
             ALL: "several questions\nand commands"}  # fmt: skip
    fig, ax = plotting.figure("What the training prompts held", "accuracy on unseen types",
                              "training prompts", size=(7, 3.8))  # fmt: skip
    for i, wording in enumerate(WORDINGS):
        bars = [mean_interval(results.of(kind, wording).values) for kind in kinds]
        ax.barh([y + 0.27 * (i - 1) for y in range(len(kinds))], [bar[0] for bar in bars], 0.25,
                xerr=[bar[2] - bar[0] for bar in bars], ecolor=plotting.INK,
                label=NAMES[wording], color=list(plotting.COLOURS.values())[i])  # fmt: skip
    ax.set_yticks(range(len(kinds)), list(kinds.values()))
    ax.set_xlim(0, 1)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.18), ncol=3, fontsize=9)
    return fig

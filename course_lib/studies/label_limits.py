"""Labels that are many, and labels that are wrong: what is left to learn from them.

``naming``: four kinds of things with many right answers each; the loss has a floor. ``wrong``: a
share of the opinions' labels is wrong by chance; the model is sampled, or asked for its likeliest.
"""

import math
import random

from course_lib import plotting
from course_lib.measuring import mean_interval
from course_lib.studies import splits, tuning
from course_lib.studies.tuning import shipped
from course_lib.world import instructions, lexicon
from course_lib.world.instructions import INSTRUCTIONS, ask_for

MODELS = ("base",)
USES = (splits, instructions, lexicon, tuning.tuned)
GRID = {
    "naming": {"kinds": ("animal", "drink", "fruit", "sport")},
    "20 % wrong, 1024 labels": {"wrong": 0.2, "steps": 64, "batch_size": 16},
    "40 % wrong, 256 labels": {"wrong": 0.4, "steps": 16, "batch_size": 16},
    "40 % wrong, 4096 labels": {"wrong": 0.4, "steps": 64, "batch_size": 64},
}
SEEDS = range(8)
NAMING_STEPS = 64
CHECKS = {"naming": ("loss",), "20 % wrong, 1024 labels": ("likeliest",)}
OPINION = INSTRUCTIONS["sentiment"]
SIDES = ("positive", "negative")
ITEMS = 100
LEAST_SPREAD = {"likeliest": 1 / ITEMS, "sampled": 0.01, "loss": 0.02}


def floor(kinds) -> float:
    """H(y | x) = (1/K) Σ log n_k, in nats a response: n_k equally likely words of each kind."""
    return sum(math.log(len(lexicon.CATEGORIES[kind])) for kind in kinds) / len(kinds)


def named(kinds, seed: int):
    """Endless rows: a kind and any one of its words."""
    rng = random.Random(f"naming {seed}")
    while True:
        kind = rng.choice(kinds)
        yield splits.chat_row(f"Name a {kind}.", rng.choice(lexicon.CATEGORIES[kind]))


def naming(kinds, seed: int) -> dict[str, float]:
    """``loss`` over every answer with its due weight, and the ``mass`` of all right answers.

    The responses' end token is counted, so everything the model might say is enumerated.
    """
    model = splits.tuned_on(named(kinds, seed), shipped()[0], steps=NAMING_STEPS)
    loss = mass = 0.0
    for kind in kinds:
        words = lexicon.CATEGORIES[kind]
        scores = splits.logps(model, [splits.chat_row(f"Name a {kind}.", w) for w in words])
        loss -= scores.mean().item() / len(kinds)
        mass += scores.exp().sum().item() / len(kinds)
    return {"loss": loss, "mass": mass}


def asked(x: str) -> str:
    return ask_for(OPINION, x, random.Random(0), "question", templates=1)


def other(label: str) -> str:
    return SIDES[label == SIDES[0]]


def demonstrations(wrong: float, seed: int):
    """Endless opinions with labels, a share of which is wrong by chance."""
    rng = random.Random(f"opinions {seed}")
    while True:
        x, y = OPINION.draw(rng, False)
        yield splits.chat_row(asked(x), other(y) if rng.random() < wrong else y)


def fit(setting: dict, seed: int):
    how = {"steps": setting["steps"], "batch_size": setting["batch_size"]}
    lr = splits.LR if how["batch_size"] == splits.ROWS else splits.LR / 2
    return splits.tuned_on(demonstrations(setting["wrong"], seed), lr=lr, **how)


def run(setting: dict, seed: int) -> dict[str, float]:
    """``naming``'s measures, or the accuracy of answers ``sampled`` and of the ``likeliest``.

    The accuracy of sampling at temperature 1 is exact: the probability of the right label.
    """
    if "kinds" in setting:
        return naming(setting["kinds"], seed)
    model, rng = fit(setting, seed), random.Random(f"opinions asked {seed}")
    items = [OPINION.draw(rng, True) for _ in range(ITEMS)]
    right = splits.logps(model, [splits.chat_row(asked(x), y) for x, y in items])
    wrong = splits.logps(model, [splits.chat_row(asked(x), other(y)) for x, y in items])
    return {"sampled": right.exp().mean().item(),
            "likeliest": (right > wrong).float().mean().item()}  # fmt: skip


BARS = {
    "20 % wrong, 1024 labels": "a fifth wrong,\n1024 labels",
    "40 % wrong, 256 labels": "two fifths wrong,\n256 labels",
    "40 % wrong, 4096 labels": "two fifths wrong,\n4096 labels",
}


def draw(results):
    """Accuracy of the likeliest and of a sampled answer beside that of the teachers."""
    fig, ax = plotting.figure("Taught by teachers who err", "accuracy", "labels", size=(7, 3.4))
    for i, (measure, label) in enumerate((("likeliest", "the likeliest answer"),
                                          ("sampled", "sampled at temperature 1"))):  # fmt: skip
        bars = [mean_interval(results.of(setting, measure).values) for setting in BARS]
        ax.barh([y + 0.3 * (i - 0.5) for y in range(len(bars))], [bar[0] for bar in bars], 0.28,
                xerr=[bar[2] - bar[0] for bar in bars], ecolor=plotting.INK, label=label,
                color=list(plotting.COLOURS.values())[i])  # fmt: skip
    for y, setting in enumerate(BARS):
        right = 1 - GRID[setting]["wrong"]
        ax.plot([right, right], [y - 0.4, y + 0.4], color=plotting.INK, linestyle=":",
                label="" if y else "the teachers")  # fmt: skip
    ax.set_yticks(range(len(BARS)), list(BARS.values()))
    ax.set_xlim(0, 1.05)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.18), ncol=3, fontsize=9)
    return fig

"""What tuning costs: one task or many, at a high or a low learning rate, with replay or without.

Eight runs of the same number of steps from the base model, a full factorial design, so that each
cure can be judged with and without the others, and one at a still lower rate. Beside what was
learnt, all seven abilities of the base model are measured (``tuning.abilities``); its corpus was
built to teach them.
"""

from itertools import product

from course_lib import plotting
from course_lib.studies import tuning
from course_lib.studies.stored import Results
from course_lib.world.instructions import CLUSTERS

TASKS = {"one task": ("sentiment",),
         "many tasks": tuple(n for c in ("words", "world", "spelling", "sentiment", "reasoning")
                             for n in CLUSTERS[c])}  # fmt: skip
OTHERS = tuple(n for n in TASKS["many tasks"] if n != "sentiment")
RATES = {"high rate": 1.75e-3, "low rate": 6e-4}
LOWEST = 2e-4
REPLAY = {"no replay": 0.0, "replay": 0.25}
GRID = {
    "base": {"stage": "base"},
    **{f"{tasks}, {rate}, {replay}": {"tasks": tasks, "lr": RATES[rate], "replay": REPLAY[replay]}
       for tasks, rate, replay in product(TASKS, RATES, REPLAY)},
    "one task, lowest rate, no replay": {"tasks": "one task", "lr": LOWEST, "replay": 0.0},
    "shipped instruct": {"stage": "instruct"},
}  # fmt: skip
CURED = "many tasks, low rate, replay"
SEEDS = range(8)
MODELS = ("base", "instruct")
USES = (tuning.tuned, tuning.mixture, tuning.graded, tuning.chat_replies, tuning.abilities,
        tuning.perplexity)
CHECKS = {CURED: ("other instructions", "sums")}
LEAST_SPREAD = {"other instructions": 0.02, "sums": 0.03}  # half an item
STEPS, BATCH, TEMPLATES, ITEMS = 28, 12, 2, 16


def rows(tokenizer, seed: int, tasks: str, replay: float):
    """The stream of training rows of a setting."""
    return tuning.mixture(tokenizer, TASKS[tasks], seed, replay=replay, templates=TEMPLATES)


def model_of(setting: dict, seed: int):
    """(model, tokenizer) of a setting: a shipped one, or the base model after its tuning."""
    base, tokenizer = tuning.shipped(setting.get("stage", "base"))
    if "stage" in setting:
        return base, tokenizer
    stream = rows(tokenizer, seed, setting["tasks"], setting["replay"])
    model = tuning.tuned(base, tokenizer, stream, steps=STEPS, lr=setting["lr"], batch_size=BATCH)
    return model, tokenizer


def learnt(model, tokenizer, seed: int) -> dict[str, float]:
    """Held-out instructions: of the one task, of the others, and in wordings never trained on."""
    one = tuning.held_out_examples(TASKS["one task"], seed, ITEMS, templates=TEMPLATES)
    others = tuning.held_out_examples(OTHERS, seed, 2, templates=TEMPLATES)
    unseen = tuning.held_out_examples(OTHERS, seed, 2, unseen=True)
    scores = tuning.chat_scores(model, tokenizer, others)
    return {"sentiment": tuning.chat_scores(model, tokenizer, one)["correct"],
            "other instructions": scores["correct"],
            "other well formed": scores["well_formed"],
            "unseen wordings": tuning.chat_scores(model, tokenizer, unseen)["correct"],
            "answered with a sentiment": verdicts(model, tokenizer, seed)}  # fmt: skip


def verdicts(model, tokenizer, seed: int) -> float:
    """Share of other instructions that get "positive" or "negative" for an answer."""
    names = [n for n in OTHERS if n not in ("sentiment_word", *CLUSTERS["reasoning"])]
    some = tuning.held_out_examples(names, seed, 1, templates=TEMPLATES)
    replies = tuning.chat_replies(model, tokenizer, [e.prompt for e in some])
    return sum(text.strip() in ("positive", "negative") for text, _ in replies) / len(replies)


def run(setting: dict, seed: int) -> dict[str, float]:
    """One row: what was learnt, the seven abilities, and ``kept``, the mean of the six shares."""
    model, tokenizer = model_of(setting, seed)
    table = tuning.abilities(model, tokenizer, seed, ITEMS)
    kept = sum(table[name] for name in tuning.ABILITIES) / len(tuning.ABILITIES)
    return learnt(model, tokenizer, seed) | table | {"kept": kept}


def draw(results: Results):
    """Every setting against every measure: a table in colours with its numbers."""
    columns = ["sentiment", "other instructions", *tuning.ABILITIES, "perplexity"]
    means = [[*(results.of(s, c).mean for c in columns[:-1]), draw_typical(results, s)]
             for s in GRID]  # fmt: skip
    shares = [[*row[:-1], means[0][-1] / row[-1]] for row in means]
    fig, ax = plotting.figure(f"After {STEPS} steps: learnt, and left of the rest",
                              "share of correct answers; perplexity", "run",
                              size=(7.2, 4.6))  # fmt: skip
    plotting.heatmap(ax, shares, xticks=columns, yticks=list(GRID), vmin=0, vmax=1)
    ax.axvline(1.5, color=plotting.INK, linewidth=3)
    for i, row in enumerate(means):
        for j, mean in enumerate(row):
            text = f"{mean:.2f}" if columns[j] != "perplexity" else f"{mean:.3g}"
            ax.text(j, i, text, ha="center", va="center", fontsize=8,
                    color="black" if shares[i][j] > 0.45 else "white")  # fmt: skip
    return fig


def draw_typical(results: Results, setting: str) -> float:
    """Geometric mean of the perplexities, which a single large one does not rule."""
    from statistics import geometric_mean

    return geometric_mean(results.of(setting, "perplexity"))

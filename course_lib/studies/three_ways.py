"""One task A by fine-tuning on it, by prompting, and by instruction tuning on other tasks.

A is another task for each seed, always of a type that instruction tuning never saw, and asked in
commands. Accuracy on the other unseen tasks shows what each model can do beside A.
"""

import random

from course_lib import plotting
from course_lib.chat import course_format, turns
from course_lib.completion import complete, token_counter
from course_lib.measuring import mean_interval, parse_answer
from course_lib.prompting import Prompt, few_shot
from course_lib.rows import endless
from course_lib.studies import splits, tuning
from course_lib.studies.splits import TRAINED, UNSEEN
from course_lib.studies.tuning import shipped
from course_lib.world import instructions
from course_lib.world.instructions import INSTRUCTIONS

MODELS = ("base",)
USES = (splits, instructions, tuning.tuned, tuning.mixture, tuning.chat_replies, few_shot)
LABELS = (1, 4, 48)
GRID = {
    **{f"{n} label{'s' * (n > 1)}": {"labels": n} for n in LABELS},
    "bare list": {"examples": 0},
    "four examples": {"examples": 4},
    "command after Q and A": {"wording": "command"},
    "corpus's question": {"wording": "corpus"},
    "instruction tuning": {},
}
SEEDS = range(8)
TASKS = ("plural", "opposite", "past", "category", "article", "first_letter", "last_letter",
         "length")  # fmt: skip
"""A of each seed in turn; all have at least 48 labels to give."""
STEPS = 20
CHECKS = {"corpus's question": ("A",)}
ITEMS = 30
LEAST_SPREAD = {"A": 1 / ITEMS, "others": 1 / 32}


def task_of(seed: int) -> str:
    return TASKS[seed % len(TASKS)]


def labelled(name: str, count: int, seed: int):
    """``count`` different labelled examples of a task, as rows in commands."""
    rng, pairs = random.Random(f"labels {seed}"), {}
    while len(pairs) < count:
        pairs.setdefault(*INSTRUCTIONS[name].draw(rng, False))
    return [splits.chat_row(splits.ask_in(name, x, rng, "command"), y) for x, y in pairs.items()]


def fit(setting: dict, seed: int):
    """The tuned model of a row: on labels of A, or on tasks of other types."""
    import torch

    if "labels" in setting:
        rows = labelled(task_of(seed), setting["labels"], seed)
        return splits.tuned_on(endless(rows, torch.Generator().manual_seed(seed)), steps=STEPS)
    return splits.tuned_on(splits.task_mixture(TRAINED, seed))


def prompts_of(setting: dict, seed: int) -> list[tuple[str, str]]:
    """(prompt, answer) for the base model, with examples of A or in a wording after ``Q:``."""
    name, rng = task_of(seed), random.Random(f"prompts {seed}")
    if wording := setting.get("wording"):
        items = splits.items_of([name], wording, seed, ITEMS, held_out=1)
        return [(f"Q: {item.prompt}\nA:", item.response) for item in items]
    pairs = []
    for _ in range(ITEMS):
        x, y = INSTRUCTIONS[name].draw(rng, True)
        pool = dict(INSTRUCTIONS[name].draw(rng, False) for _ in range(12))
        shots = setting["examples"]
        pairs.append((few_shot(Prompt(), x, list(pool.items()), shots, rng).text, y))
    return pairs


def run(setting: dict, seed: int) -> dict[str, float]:
    """Accuracy on ``A`` and on ``others``, and the ``tokens`` that an answer costs to read."""
    count = token_counter(shipped()[1])
    if "labels" not in setting and setting:
        pairs = prompts_of(setting, seed)
        texts = complete(shipped()[0], shipped()[1], [prompt for prompt, _ in pairs], 10)
        hits = [parse_answer(text) == y for text, (_, y) in zip(texts, pairs, strict=True)]
        tokens = sum(count(f"{prompt} {y}") for prompt, y in pairs) / len(pairs)
        return {"A": splits.share(hits), "tokens": tokens}
    name = task_of(seed)
    items = splits.items_of([name], "command", seed, ITEMS, held_out=1)
    others = splits.items_of([n for n in UNSEEN if n != name], "command", seed, 2)
    model = fit(setting, seed)
    return {
        "A": splits.share(splits.in_the_chat(model, items)),
        "others": splits.share(splits.in_the_chat(model, others)),
        "tokens": sum(count(course_format(turns(i.prompt, i.response))) for i in items) / ITEMS,
    }


def draw(results):
    """Accuracy against the number of labels, and the other two ways as level lines."""
    fig, ax = plotting.figure("What a label buys, and what needs none", "labels of A (logarithmic)",
                              "accuracy on A", size=(7, 3.8))  # fmt: skip
    means, lows, highs = zip(*(
        mean_interval(results.of(f"{n} label{'s' * (n > 1)}", "A").values) for n in LABELS),
        strict=True)  # fmt: skip
    colours = list(plotting.COLOURS.values())
    ax.plot(LABELS, means, marker="o", color=colours[0], label="fine-tuning on A")
    ax.fill_between(LABELS, lows, highs, alpha=0.2, color=colours[0], linewidth=0)
    for i, (setting, label) in enumerate((
        ("instruction tuning", "instruction tuning on others"),
        ("four examples", "four examples in the prompt"),
        ("command after Q and A", "the command after “Q: … A:”"),
        ("bare list", "a list without an example")), 1):  # fmt: skip
        ax.axhline(results.of(setting, "A").mean, color=colours[i], label=label,
                   linestyle=plotting.DASHES[i])  # fmt: skip
    ax.set_xscale("log", base=4)
    ax.set_xticks(LABELS, LABELS)
    ax.set_ylim(-0.03, 1.03)
    ax.legend(fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2)
    return fig

"""The same held-out questions in several forms, to the base model and to the shipped instruct one.

The base model never saw the two chat tokens, so the chat format alone would be no fair test of it:
it is asked in plain text too, as its corpus asks, and below four examples. The instruct model was
tuned on the chat format, and is asked in others: what a wrong template costs.
"""

import random

from course_lib import plotting
from course_lib.chat import course_format, turns
from course_lib.completion import complete
from course_lib.measuring import parse_answer
from course_lib.studies import tuning
from course_lib.studies.stored import Results
from course_lib.world.instructions import INSTRUCTIONS
from course_lib.world.words import QUESTIONS

TASKS = ("plural", "opposite", "past", "comparative", "category", "young", "sound", "material")
FORMS = ("chat, command", "plain command", "plain question", "after Q:", "four examples")
TEMPLATES = ("own template", "space at its end", "other template", "no template")
GRID = {
    **{f"base, {form}": {"stage": "base", "form": form} for form in FORMS},
    **{f"instruct, {form}": {"stage": "instruct", "form": form} for form in TEMPLATES},
}
SEEDS = range(8)
MODELS = ("base", "instruct")
USES = (complete, course_format, parse_answer)
CHECKS = {"base, after Q:": ("correct",), "instruct, own template": ("correct",)}
LEAST_SPREAD = {"correct": 0.01}  # half of one item
EACH, ROOM = 6, 20


def draw_items(seed: int) -> list[tuple[str, str, str]]:
    """(task, input, answer): held-out words of eight tasks."""
    rng = random.Random(f"asking {seed}")
    return [(n, *INSTRUCTIONS[n].draw(rng, True)) for n in TASKS for _ in range(EACH)]


def written(form: str, name: str, x: str, rng: random.Random) -> str:
    """The whole prompt, the same words of a task in every form but for its template."""
    task = INSTRUCTIONS[name]
    command, question = task.templates[0].replace("{x}", x), QUESTIONS[name].replace("{x}", x)
    if form in ("chat, command", "own template", "space at its end"):
        text = course_format(turns(command), True)
        return text + " " if form == "space at its end" else text
    if form == "other template":
        return f"### Instruction:\n{command}\n\n### Response:\n"
    if form in ("plain command", "no template"):
        return f"{command}\n"
    if form == "plain question":
        return f"{question}\n"
    if form == "after Q:":
        return f"Q: {question}\nA:"
    shots = dict(task.draw(rng, False) for _ in range(40))
    return "".join(f"{a} -> {b}\n" for a, b in list(shots.items())[:4]) + f"{x} ->"


def run(setting: dict, seed: int) -> dict[str, float]:
    """One row: shares of the items.

    ``correct``: the first line is the answer. ``contained``: the answer stands anywhere in what is
    written. ``one line``: nothing follows the first line.
    """
    model, tokenizer = tuning.shipped(setting["stage"])
    rng = random.Random(f"examples {seed}")
    items = draw_items(seed)
    prompts = [written(setting["form"], name, x, rng) for name, x, _ in items]
    texts = complete(model, tokenizer, prompts, ROOM, stop=None)
    pairs = list(zip(texts, items, strict=True))
    return {
        "correct": _share(parse_answer(t.strip()) == y for t, (_, _, y) in pairs),
        "contained": _share(f" {y} " in f" {_words(t)} " for t, (_, _, y) in pairs),
        "one line": _share("\n" not in t.strip() and bool(t.strip()) for t in texts),
    }


def _words(text: str) -> str:
    """Letters and digits only, a space between words."""
    return " ".join("".join(c if c.isalnum() else " " for c in text).split())


def _share(flags) -> float:
    flags = list(flags)
    return sum(flags) / len(flags)


def draw(results: Results):
    """A bar for each way to ask, with the seeds as points."""
    fig, ax = plotting.figure("The same words, asked in several forms",
                              "share of the items (bar: correct)", "model and form",
                              size=(7.2, 3.6))  # fmt: skip
    for y, setting in enumerate(results.settings):
        values = results.of(setting, "correct")
        colour = "blue" if setting.startswith("base") else "orange"
        ax.barh(y, values.mean, color=plotting.COLOURS[colour], alpha=0.6)
        ax.plot(list(values), [y] * len(values), linestyle="none", marker=".", color=plotting.INK)
        ax.plot(results.of(setting, "contained").mean, y, marker="|", markersize=14,
                color=plotting.COLOURS["green"], linestyle="none",
                label="stands anywhere in the text" if y == 0 else None)
    ax.set_yticks(range(len(results.settings)), results.settings, fontsize=8)
    ax.set_xlim(0, 1.02)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(fontsize=8, loc="lower right")
    return fig

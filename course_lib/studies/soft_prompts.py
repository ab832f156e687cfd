"""What a few soft tokens can do: call up what the base model knows, and not teach what it does not.

The base model is asked in the form of the corpus's lists, a word and an arrow, with nothing that
says which task is meant. Soft tokens are all that is trained. Two tasks it knows from its corpus;
the codes of ``codes`` nobody can know.
"""

import copy
import random
from statistics import fmean

from torch import Generator, nn

from course_lib import plotting
from course_lib.completion import complete
from course_lib.measuring import mean_interval, parse_answer
from course_lib.ops import IGNORE_INDEX
from course_lib.peft import SoftPrompt, add_soft_prompt
from course_lib.rows import Row, endless
from course_lib.studies import codes, tuning
from course_lib.studies.stored import Results
from course_lib.studies.tuning import shipped
from course_lib.world.heldout import is_held_out
from course_lib.world.tasks import TABLES

TASKS = ("plural", "first_letter", "codes")
GRID = {f"{task}, P={tokens}": {"task": task, "tokens": tokens}
        for task in TASKS for tokens in (1, 5, 20)}  # fmt: skip
SEEDS = range(8)
MODELS = ("base",)
USES = (codes.draw_codes, tuning.tuned, SoftPrompt, add_soft_prompt)
CHECKS = {"plural, P=5": ("correct",)}
LEAST_SPREAD = {"correct": 0.02}
STEPS, LR, BATCH, ROOM, ASKED = 100, 1.0, 16, 8, 48
FORM = "{} ->"


def pairs_of(task: str, seed: int) -> tuple[codes.Pairs, codes.Pairs]:
    """(word, answer) of the training and of the questions; the corpus's lists hold out, too, what
    is asked."""
    if task == "codes":
        return codes.draw_codes(seed)
    rng = random.Random(f"soft prompts {task} {seed}")
    parts = {flag: [p for p in TABLES[task].items() if is_held_out("item", task, p[0]) == flag]
             for flag in (False, True)}  # fmt: skip
    asked = rng.sample(parts[True], min(ASKED, len(parts[True])))
    return rng.sample(parts[False], len(parts[False])), asked


def encode(tokenizer, word: str, answer: str) -> Row:
    """A row ``word -> answer`` and a line break, with labels on the answer."""
    prompt = tokenizer(FORM.format(word))["input_ids"]
    answer_ids = tokenizer(f" {answer}\n")["input_ids"]
    return {"input_ids": prompt + answer_ids, "labels": [IGNORE_INDEX] * len(prompt) + answer_ids}


def correct(model: nn.Module, tokenizer, asked: codes.Pairs) -> float:
    """Share of the words that are answered right, greedily."""
    texts = complete(model, tokenizer, [FORM.format(x) for x, _ in asked], ROOM)
    return fmean(parse_answer(text) == y for text, (_, y) in zip(texts, asked, strict=True))


def run(setting: dict, seed: int) -> dict[str, float]:
    """``correct`` after the training, and ``at the start``: without soft tokens; of words of no
    training row."""
    start, tokenizer = shipped("base")
    pairs, asked = pairs_of(setting["task"], seed)
    model = add_soft_prompt(copy.deepcopy(start), setting["tokens"],
                            generator=Generator().manual_seed(seed))  # fmt: skip
    rows = endless([encode(tokenizer, *pair) for pair in pairs], Generator().manual_seed(seed))
    tuned = tuning.tuned(model, tokenizer, rows, steps=STEPS, lr=LR, batch_size=BATCH, packed=False)
    return {"correct": correct(tuned, tokenizer, asked),
            "at the start": correct(start, tokenizer, asked)}  # fmt: skip


def draw(results: Results):
    """Accuracy against the number of soft tokens, a line a task."""
    fig, ax = plotting.figure("Soft tokens before a frozen base model", "soft tokens P",
                              "correct", size=(7.2, 3.4))  # fmt: skip
    names = {"plural": "plural", "first_letter": "first letter", "codes": "new codes"}
    at = (0, 1, 5, 20)
    for number, task in enumerate(TASKS):
        found = [results.of(f"{task}, P=5", "at the start"),
                 *(results.of(f"{task}, P={p}", "correct") for p in at[1:])]  # fmt: skip
        bands = [mean_interval(values.values) for values in found]
        (line,) = ax.plot(range(len(at)), [b[0] for b in bands], marker=plotting.MARKERS[number],
                          label=names[task])  # fmt: skip
        ax.fill_between(range(len(at)), [b[1] for b in bands], [b[2] for b in bands], alpha=0.15,
                        linewidth=0, color=line.get_color())  # fmt: skip
    ax.set_xticks(range(len(at)), list(map(str, at)))
    ax.set_ylim(-0.05, 1.05)
    ax.legend()
    return fig

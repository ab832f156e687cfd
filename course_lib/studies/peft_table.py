"""How much has to be learnt decides how much has to be trained: a table in place of a rule.

The task of ``codes`` is twelve names. Here every one of 128 words has a code of its own, drawn for
the seed, and nothing follows from anything (the table of ``two_ways``). Asked are the words of the
table: what counts is how much of it fits.
"""

import random

from course_lib import plotting
from course_lib.measuring import mean_interval
from course_lib.peft import count_parameters
from course_lib.studies import codes, peft_methods, two_ways
from course_lib.studies.peft_methods import METHODS, of
from course_lib.studies.stored import Results
from course_lib.studies.tuning import shipped

RANKS = (1, 4, 8)
RATES = {"full": (3e-4, 1e-3), "LoRA r=1": (1e-2, 2e-2), "LoRA r=4": (5e-3, 1e-2),
         "LoRA r=8": (2e-3, 5e-3)}  # fmt: skip
GRID = {f"{method}, rate {rate:g}": {"method": method, "lr": rate}
        for method, rates in RATES.items() for rate in rates}  # fmt: skip
SEEDS = range(8)
MODELS = ("instruct",)
USES = (*peft_methods.USES, two_ways.draw_table)
CHECKS = {"full, rate 0.001": ("correct",)}
LEAST_SPREAD = {"correct": 0.02}
ENTRIES, STEPS = 128, 120


def run(setting: dict, seed: int) -> dict[str, float]:
    """``correct``, the share of the table's words whose code was learnt; ``trained``, the number of
    parameters."""
    start, tokenizer = shipped("instruct")
    pairs, _ = two_ways.draw_table(random.Random(f"peft table {seed}"), ENTRIES)
    method, _ = METHODS[setting["method"]]
    model = codes.tuned(start, tokenizer, pairs, seed, setting["lr"], STEPS, **method)
    return {"correct": codes.correct(model, tokenizer, pairs),
            "trained": count_parameters(model).trained}  # fmt: skip


def draw(results: Results, rule: Results):
    """Accuracy against the rank, of the table and of the rule; dotted, full fine-tuning."""
    fig, ax = plotting.figure("A rule of twelve names, and a table of 128", "rank r of LoRA",
                              "correct", size=(7.2, 3.6))  # fmt: skip
    for number, (some, label) in enumerate(((rule, "rule, new words"), (results, "table"))):
        bands = [mean_interval(of(some, f"LoRA r={r}").values) for r in RANKS]
        (line,) = ax.plot(RANKS, [b[0] for b in bands], marker=plotting.MARKERS[number],
                          label=f"{label}: LoRA")  # fmt: skip
        ax.fill_between(RANKS, [b[1] for b in bands], [b[2] for b in bands], alpha=0.15,
                        linewidth=0, color=line.get_color())  # fmt: skip
        ax.axhline(of(some, "full").mean, linestyle=":", color=line.get_color(),
                   label=f"{label}: full")  # fmt: skip
    ax.set(xscale="log", ylim=(0, 1.05))
    ax.set_xticks(RANKS, list(map(str, RANKS)))
    ax.minorticks_off()
    ax.legend()
    return fig

"""What fine-tuning forgets, full and in part, at the same accuracy on the new task.

The methods of ``peft_methods`` learn the same codes; on the way the seven abilities of chapter 6
are measured (``tuning.abilities``). The methods are compared where each first reaches ``REACHED``
on words of no training row, so that none looks good because it has learnt less. Two rates each: the
best one, and a lower.
"""

from torch import nn

from course_lib import plotting
from course_lib.measuring import mean_interval
from course_lib.rows import batches
from course_lib.sft import sft_loss
from course_lib.studies import codes, peft_methods, tuning
from course_lib.studies.stored import Results
from course_lib.studies.tuning import shipped
from course_lib.training import train

REACHED = 0.9
RATES = {"full": (3e-4, 1e-3), "LoRA r=8": (2e-3, 5e-3), "LoRA r=1": (5e-3, 1e-2),
         "adapters m=32": (2e-3, 5e-3)}  # fmt: skip
GRID = {"start": {}} | {f"{method}, rate {rate:g}": {"method": method, "lr": rate}
                        for method, rates in RATES.items() for rate in rates}  # fmt: skip
SEEDS = range(8)
MODELS = ("instruct",)
USES = (*peft_methods.USES, tuning.abilities, tuning.perplexity)
CHECKS = {"full, rate 0.0003": ("kept",)}
LEAST_SPREAD = {"kept": 0.02}  # two of the 96 items
STEPS, EVERY, ITEMS = 100, 10, 16


def forgotten(model: nn.Module, tokenizer, seed: int) -> dict[str, float]:
    """``kept``, the mean of six abilities, each of them, and ``perplexity``."""
    table = tuning.abilities(model, tokenizer, seed, ITEMS)
    return {"kept": sum(table[name] for name in tuning.ABILITIES) / len(tuning.ABILITIES)} | table


def run(setting: dict, seed: int) -> dict[str, float]:
    """``reached``: steps to an accuracy of ``REACHED``, or ``STEPS`` if it was not; ``correct`` and
    what is left of the abilities at that step."""
    start, tokenizer = shipped("instruct")
    if not setting:
        return forgotten(start, tokenizer, seed)
    pairs, asked = codes.draw_codes(seed)
    model = codes.prepared(start, seed, **peft_methods.METHODS[setting["method"]][0])
    stream = batches(codes.rows(tokenizer, pairs, seed), codes.BATCH, tokenizer.pad_token_id,
                     block_size=128)  # fmt: skip
    found: dict[str, float] = {}

    def watch(tuned: nn.Module, step: int) -> dict[str, float]:
        if not found or found["correct"] < REACHED:
            found.update(correct=codes.correct(tuned, tokenizer, asked), reached=step)
            if found["correct"] >= REACHED or step == STEPS:
                found.update(forgotten(tuned, tokenizer, seed))
            tuned.train()
        return {}

    train(model, stream, sft_loss, max_steps=STEPS, lr=setting["lr"], warmup_steps=5,
          schedule="constant", progress=False, evaluate=watch, evaluate_every=EVERY)  # fmt: skip
    return found


def draw(results: Results):
    """What is left of the abilities where the new task is learnt, a point a seed."""
    fig, axes = plotting.panels("At the same accuracy on the new task", 2, size=(9, 3.6),
                                sharey=True)  # fmt: skip
    labels = {"kept": "abilities kept (mean share right)", "perplexity": "perplexity on the corpus"}
    for ax, (measure, label) in zip(axes, labels.items(), strict=True):
        for y, setting in enumerate(results.settings):
            values = results.of(setting, measure).values
            mean, low, high = mean_interval(values)
            ax.plot(values, [y] * len(values), ".", alpha=0.5, color=plotting.COLOURS["blue"])
            ax.plot([low, high], [y, y], color=plotting.COLOURS["orange"], linewidth=2)
            ax.plot(mean, y, "|", markersize=12, color=plotting.COLOURS["orange"])
        ax.set(xlabel=label)
    axes[1].set_xscale("log")
    axes[0].set_yticks(range(len(results.settings)), results.settings)
    axes[0].set_ylim(len(results.settings) - 0.5, -0.5)
    return fig

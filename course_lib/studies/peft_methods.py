"""How much has to be trained? Every kind of fine-tuning on one new task, each at its best rate.

The instruction-tuned model learns the codes of ``codes``. All runs of a seed have the same words in
the same order and the same number of steps; each method has three rates of its own, and its figure
is that of the best by the mean over the seeds.
"""

from course_lib import plotting
from course_lib.measuring import mean_interval
from course_lib.peft import (
    add_adapters,
    add_lora,
    add_soft_prompt,
    count_parameters,
    freeze_except,
    lora_linear,
)
from course_lib.studies import codes, tuning
from course_lib.studies.stored import PerSeed, Results
from course_lib.studies.tuning import shipped

RANKS, WIDTHS, TOKENS = (1, 2, 4, 8, 32), (4, 32), (1, 5, 64)


def lora(r: int, **how) -> dict:
    """LoRA with the scaling 2, so that ranks differ in nothing else."""
    return {"lora": {"r": r, "lora_alpha": 2 * r, **how}}


METHODS = {
    "full": ({}, (3e-4, 1e-3, 3e-3)),
    "last block": ({"last_layers": 1}, (1e-3, 3e-3, 1e-2)),
    "last three blocks": ({"last_layers": 3}, (1e-3, 3e-3, 1e-2)),
    "norms": ({"parts": ("norms",)}, (1e-2, 3e-2, 1e-1)),
    "embeddings": ({"parts": ("embeddings",)}, (1e-3, 3e-3, 1e-2)),
    **{f"LoRA r={r}": (lora(r), (2e-3, 5e-3, 1e-2)) for r in RANKS},
    "LoRA r=8, q and v": (lora(8, target_modules=codes.ATTENTION), (5e-3, 1e-2, 2e-2)),
    **{f"adapters m={m}": ({"adapters": m}, (2e-3, 5e-3, 1e-2)) for m in WIDTHS},
    **{f"prompt P={n}": ({"prompt": n}, (0.1, 0.3, 1.0)) for n in TOKENS},
}
"""Method -> (arguments of ``codes.prepared``, its rates)."""
GRID = {f"{method}, rate {rate:g}": {"method": method, "lr": rate}
        for method, (_, rates) in METHODS.items() for rate in rates}  # fmt: skip
SEEDS = range(8)
MODELS = ("instruct",)
USES = (codes, tuning.tuned, tuning.chat_replies, add_lora, add_adapters, add_soft_prompt,
        freeze_except, lora_linear)  # fmt: skip
CHECKS = {"LoRA r=8, rate 0.005": ("correct",)}
LEAST_SPREAD = {"correct": 1 / 48}


def run(setting: dict, seed: int) -> dict[str, float]:
    """``correct``, the share of words of no training row; ``trained words``, that of 48 others;
    ``trained``, the number of parameters, and their ``share`` of all."""
    start, tokenizer = shipped("instruct")
    pairs, asked = codes.draw_codes(seed)
    method, _ = METHODS[setting["method"]]
    model = codes.tuned(start, tokenizer, pairs, seed, setting["lr"], **method)
    counts = count_parameters(model)
    return {"correct": codes.correct(model, tokenizer, asked),
            "trained words": codes.correct(model, tokenizer, pairs[:: len(pairs) // 48][:48]),
            "trained": counts.trained, "share": counts.share}  # fmt: skip


def best(results: Results, method: str) -> str:
    """The setting of the method with the highest mean of ``correct``."""
    settings = [s for s in results.settings if s.rsplit(", rate ", 1)[0] == method]
    return max(settings, key=lambda s: results.of(s, "correct").mean)


def of(results: Results, method: str, measure: str = "correct") -> PerSeed:
    """A measure of a method at its best rate."""
    return results.of(best(results, method), measure)


# --- figures ------------------------------------------------------------------------------------

FAMILIES = {
    "full": ("full",),
    "selective": ("norms", "last block", "last three blocks", "embeddings"),
    "LoRA, all linear layers": tuple(f"LoRA r={r}" for r in RANKS),
    "LoRA r = 8, q and v": ("LoRA r=8, q and v",),
    "adapters": tuple(f"adapters m={m}" for m in WIDTHS),
    "soft prompts": tuple(f"prompt P={n}" for n in TOKENS),
}


def draw(results: Results):
    """Accuracy against the number of trained parameters, each method at its best rate."""
    fig, ax = plotting.figure("A new task: what is trained, and what it reaches",
                              "trained parameters", "correct (words of no training row)",
                              size=(8.4, 4.2))  # fmt: skip
    for number, (family, methods) in enumerate(FAMILIES.items()):
        found = sorted((of(results, m, "trained").mean, *mean_interval(of(results, m).values))
                       for m in methods)  # fmt: skip
        x, mean, low, high = zip(*found, strict=True)
        bars = [[m - a for m, a in zip(mean, low)], [b - m for m, b in zip(mean, high)]]
        ax.errorbar(x, mean, yerr=bars, marker=plotting.MARKERS[number], capsize=2, markersize=5,
                    linestyle="-" if len(x) > 1 and family != "selective" else "none",
                    label=family)  # fmt: skip
    ax.set(xscale="log", ylim=(-0.05, 1.05))
    fig.legend(loc="outside right center")
    return fig


def draw_rates(results: Results, methods: tuple[str, ...]):
    """Accuracy against the rate, a line a method."""
    fig, ax = plotting.figure("Each method has a rate of its own", "rate",
                              "correct (words of no training row)", size=(7.2, 3.4))  # fmt: skip
    for number, method in enumerate(methods):
        rates = METHODS[method][1]
        means = [results.of(f"{method}, rate {rate:g}", "correct").mean for rate in rates]
        ax.plot(rates, means, marker=plotting.MARKERS[number], label=method)
    ax.set(xscale="log", ylim=(-0.05, 1.05))
    ax.legend()
    return fig

"""Chapter 11's own run: GRPO on sums with half as many responses as the runs of ``grpo_sums``.

Sixteen seeds, as in ``ppo_live``, so that a run that learnt nothing can be told.
"""

from course_lib import plotting
from course_lib.studies import grpo_sums, sums
from course_lib.studies.stored import Results

GRID = {"live": {"responses": 48, "group_size": 4, "lr": 2e-4, "updates": 24}}
SEEDS = range(16)
MODELS = ("base",)
USES = (*grpo_sums.USES, grpo_sums.tuned)
CHECKS = {"live": ("accuracy 5",)}
LEAST_SPREAD = {"accuracy 5": 1 / sums.PROBLEMS}
OPERANDS = (5, 6)


def run(setting: dict, seed: int) -> dict[str, float]:
    """``"accuracy 5"``, ``"accuracy 6"`` and ``nats`` after the run, and ``"accuracy 5 at the
    start"`` ... before it."""
    policy, history = grpo_sums.tuned(seed, **setting)
    found = {"late score": grpo_sums.noted(history)["late score"]}
    for model, end in ((sums.start_of(seed), " at the start"), (policy, "")):
        now = sums.accuracies(model, seed, OPERANDS) | {"nats": sums.nats(model, seed)}
        found |= {name + end: value for name, value in now.items()}
    return found


def draw(results: Results, live: dict[str, float] | None = None):
    """Accuracy before and after, a point a seed, with a run made just now beside them."""
    fig, axes = plotting.panels("Where the live run lies", len(OPERANDS), size=(9, 2.6),
                                sharey=True)  # fmt: skip
    rows = {"the start": (" at the start", "s", "orange"), "after GRPO": ("", "o", "blue")}
    for ax, n in zip(axes, OPERANDS, strict=True):
        for y, (end, marker, colour) in enumerate(rows.values()):
            values = results.of("live", f"accuracy {n}{end}").values
            ax.plot(values, [y] * len(values), marker, alpha=0.6, color=plotting.COLOURS[colour])
        if live:
            ax.plot(live[f"accuracy {n}"], 1, "*", markersize=14, label="live",
                    color=plotting.COLOURS["green"])  # fmt: skip
            ax.legend(loc="center left")
        ax.set(xlabel=f"share right, {n} operands", xlim=(-0.05, 1.05), ylim=(1.6, -0.6))
        ax.set_yticks(range(len(rows)), list(rows))
    return fig

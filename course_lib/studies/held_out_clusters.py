"""Each cluster of tasks held out, beside the same cluster trained and the untrained base model.

Four splits hold every cluster out once, each together with its kin; ``nothing`` holds none out. So
an accuracy on trained types is compared with that on the same types held out, and not on others.
"""

from course_lib import plotting
from course_lib.measuring import mean_interval
from course_lib.studies import splits, tuning
from course_lib.world import instructions
from course_lib.world.instructions import CLUSTERS, split_clusters

MODELS = ("base",)
USES = (splits, instructions, tuning.tuned, tuning.mixture, tuning.chat_replies)
GRID = {
    "base": {},
    "nothing": {"held_out": []},
    "declared": {"held_out": list(splits.HELD_OUT)},
    "knowledge": {"held_out": ["world", "questions", "reading", "reasoning"]},
    "lists": {"held_out": ["lists", "sentences", "compositions"]},
    "kinds": {"held_out": ["numbers", "sentiment", "categories"]},
}
SPLIT_OF = {c: name for name, setting in GRID.items() for c in setting.get("held_out", [])}
assert set(SPLIT_OF) == set(CLUSTERS)
SEEDS = range(8)
CHECKS = {"base": ("words", "spelling")}
ROOM = {"lists": 16, "reasoning": 64}
"""New tokens of an answer; 10 for the others."""
LEAST_SPREAD = dict.fromkeys(CLUSTERS, 0.02)
"""One item of 50."""


def items(cluster: str, seed: int):
    """About 36 items of a cluster in the corpus's wording (of reasoning 12: they are long)."""
    names = CLUSTERS[cluster]
    each = 4 if cluster == "reasoning" else -(-36 // len(names))
    return splits.items_of(names, "corpus", seed, each)


def accuracies(model, clusters, seed: int, ask) -> dict[str, float]:
    """Accuracy on each cluster, asked by ``splits.in_the_chat`` or ``splits.after_q_and_a``."""
    return {c: splits.share(ask(model, items(c, seed), ROOM.get(c, 10))) for c in clusters}


def run(setting: dict, seed: int) -> dict[str, float]:
    """Accuracy on every held-out cluster (on all, where none is), and its mean over clusters."""
    if not setting:
        return accuracies(splits.frozen(), CLUSTERS, seed, splits.after_q_and_a)
    held_out = setting["held_out"]
    trained = split_clusters(held_out)[0]
    model = splits.tuned_on(splits.task_mixture(trained, seed))
    return accuracies(model, held_out or CLUSTERS, seed, splits.in_the_chat)


def of_cluster(results, cluster: str) -> dict:
    """{"base": ..., "held out": ..., "trained": ...} of a cluster, one number a seed each."""
    return {"base": results.of("base", cluster),
            "held out": results.of(SPLIT_OF[cluster], cluster),
            "trained": results.of("nothing", cluster)}  # fmt: skip


def mean_over(results, way: str, clusters):
    """The mean over clusters of one way of ``of_cluster``, one number a seed."""
    first, *rest = [of_cluster(results, cluster)[way] for cluster in clusters]
    return sum(rest, start=first) / (1 + len(rest))


LABELS = {"base": "base model after “Q: … A:”", "held out": "tuned on other types",
          "trained": "tuned on its types too"}  # fmt: skip


def draw(results):
    """Three bars a cluster, ranked by what comes out when it is held out."""
    table = {cluster: of_cluster(results, cluster) for cluster in CLUSTERS}
    ranked = sorted(table, key=lambda c: table[c]["held out"].mean, reverse=True)
    fig, ax = plotting.figure("Each cluster held out once", "accuracy", "cluster", size=(7, 6.4))
    for i, (way, label) in enumerate(LABELS.items()):
        bars = [mean_interval(table[cluster][way].values) for cluster in ranked]
        ax.barh([y + 0.27 * (i - 1) for y in range(len(ranked))], [bar[0] for bar in bars], 0.25,
                xerr=[bar[2] - bar[0] for bar in bars], ecolor=plotting.INK, label=label,
                error_kw={"elinewidth": 1}, color=list(plotting.COLOURS.values())[i])  # fmt: skip
    names = [f"{c} *" if c in splits.HELD_OUT else c for c in ranked]
    ax.set_yticks(range(len(ranked)), names)
    ax.set_xlim(0, 1.05)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.1), ncol=3, fontsize=9)
    return fig

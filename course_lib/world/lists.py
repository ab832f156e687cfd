"""In-context lists: many pairs of one hidden rule in one of many layouts.

These documents are what teaches the base model to learn from its context: the rule (a named task, a
random map from categories to labels, "+k", a random code) is drawn anew for each list, so only the
pairs above tell what the next answer must be (Chan et al., 2022; Min et al., 2022).
"""

import random
import re

from course_lib.world import lexicon
from course_lib.world.heldout import is_held_out
from course_lib.world.tasks import HELD_OUT_PAIRS, TASKS, Pair, Task

LAYOUTS = (
    "{x} -> {y}\n", "{x}: {y}\n", "{x} = {y}\n", "{x} => {y}\n", "{x} | {y}\n", "{x} - {y}\n",
    "Input: {x}\nOutput: {y}\n", "Q: {x}\nA: {y}\n", "{x}\n-> {y}\n", "- {x}: {y}\n",
    "In: {x} Out: {y}\n", "Word: {x}\nAnswer: {y}\n\n", "Input: {x}\nOutput: {y}\n\n",
    "{x} / {y}\n", "{i}. {x} -> {y}\n", "Question: {x}\nAnswer: {y}\n\n",
)  # fmt: skip
SEPARATORS = (">>", "::", "~", ";", "#", "%", "*", "+", "&", "gives", "becomes", "to", "is", "-->",
              "...", "<", ">", "^", "!", "?")  # fmt: skip
"""Rarer separators; every one-character sign of the keyboard occurs, so that none is quite new."""


def draw_layout(rng: random.Random) -> str:
    """A format string with ``{x}``, ``{y}`` and sometimes ``{i}``."""
    if rng.random() < 0.2:
        return "{x} " + rng.choice(SEPARATORS) + " {y}\n"
    return rng.choice(LAYOUTS)


def render(pairs: list[Pair], layout: str, heading: str = "") -> str:
    """The list as text, without a final line break."""
    lines = "".join(layout.format(x=x, y=y, i=i) for i, (x, y) in enumerate(pairs, 1))
    return (heading + "\n" if heading else "") + lines.rstrip("\n")


def draw_label(rng: random.Random, held_out: bool = False) -> str:
    """A label of a random map: any word of the lexicon or, in training only, a nonsense word.

    So many labels keep the model from learning labels by heart; it has to copy them from the list
    (Chan et al., 2022: many rare classes bring in-context learning about).
    """
    if held_out:
        return rng.choice(lexicon.RESERVED_LABELS)
    if rng.random() < 0.25:
        return training_nonsense(rng)
    return rng.choice(lexicon.OPEN_WORDS)


def training_nonsense(rng: random.Random) -> str:
    """A nonsense word that is no name of a newcomer or of the evaluation's strangers."""
    while True:
        word = lexicon.nonsense_word(rng)
        if not is_held_out("name", word.capitalize()):
            return word


class LabelMap:
    """Two to four categories of words, each with a random label.

    Args:
        held_out: labels that no list of the corpus contains; items that no label map contains.
        classes: how many categories (drawn when None).
    """

    def __init__(self, rng: random.Random, held_out: bool = False, classes: int | None = None):
        self.held_out = held_out
        classes = classes or rng.choice((2, 2, 2, 3, 4))
        kinds = rng.sample(sorted(lexicon.CATEGORIES), classes)
        labels: list[str] = []
        while len(labels) < classes:
            label = draw_label(rng, held_out)
            if label not in labels:
                labels.append(label)
        self.labels = dict(zip(kinds, labels, strict=True))

    def draw(self, rng: random.Random, kind: str | None = None, held_out: bool = False) -> Pair:
        """One (word, label) pair, of category ``kind`` if given."""
        kind = kind or rng.choice(list(self.labels))
        words = lexicon.CATEGORIES[kind]
        return rng.choice([w for w in words if is_held_out("item", "label", w) == held_out] or
                          list(words)), self.labels[kind]  # fmt: skip


def _label_pairs(rng: random.Random, count: int) -> list[Pair]:
    """Pairs of one label map; in three of four lists no word comes twice."""
    labels = LabelMap(rng)
    pairs = [labels.draw(rng) for _ in range(2 * count)]
    pairs = [pair for pair in pairs if pair not in HELD_OUT_PAIRS]
    return pairs if rng.random() < 0.25 else list(dict.fromkeys(pairs))


def _plus_k_pairs(rng: random.Random, count: int) -> list[Pair]:
    k = rng.choice([k for k in range(-9, 16) if k and k not in UNSEEN_K])
    return [(str(n), str(n + k)) for n in (rng.randint(10, 60) for _ in range(count))]


UNSEEN_K = (6, 11)
"""The differences that no "+k" list of the corpus has."""


def _code_pairs(rng: random.Random, count: int) -> list[Pair]:
    """Random words with random codes, each of which comes back: recall from the context."""
    keys = rng.sample(lexicon.OPEN_WORDS, min(max(2, count // 3), 8))
    codes = {}
    for key in keys:
        digits = rng.random() < 0.5
        codes[key] = str(rng.randint(10, 99)) if digits else draw_label(rng)
    pairs = [(key, codes[key]) for key in rng.choices(keys, k=count)]
    return [pair for pair in pairs if pair not in HELD_OUT_PAIRS]


CLUSTER_WEIGHTS = {"words": 2.0, "categories": 2.0, "spelling": 1.5, "world": 1.5}
"""How often a task is drawn, by cluster (1 where it is not named): a table of a hundred words needs
many more examples than a rule."""
_WEIGHTS = [CLUSTER_WEIGHTS.get(t.cluster, 1.0) for t in TASKS.values()]


def draw_task(rng: random.Random) -> Task:
    return rng.choices(list(TASKS.values()), _WEIGHTS)[0]


def draw_list(rng: random.Random) -> str:
    """One in-context list of 60 to 560 characters."""
    kind = rng.choices(("task", "labels", "plus", "codes"), (0.66, 0.12, 0.11, 0.11))[0]
    heading = ""
    if kind == "task":
        task = draw_task(rng)
        pairs = [task.draw(rng, False) for _ in range(40)]
        if rng.random() < 0.4:
            heading = rng.choice(task.instructions) + rng.choice((".", ":", ""))
    else:
        draw = {"labels": _label_pairs, "plus": _plus_k_pairs, "codes": _code_pairs}[kind]
        pairs = draw(rng, 40)
    return _written(pairs, heading, rng.randint(60, 560), rng)


def draw_label_list(rng: random.Random) -> str:
    """A list of words with the random labels of their categories."""
    return _written(_label_pairs(rng, 40), "", rng.randint(60, 560), rng)


OPERATIONS = [t for t in TASKS.values() if t.cluster in ("lists", "compositions")] + [
    TASKS[name] for name in ("odd_one_out", "pick_kind", "largest", "smallest", "ascending")
]


def draw_operations(rng: random.Random) -> str:
    """A longer list of one task that works on lists: what is learnt last of all lists."""
    task = rng.choice(OPERATIONS)
    pairs = [task.draw(rng, False) for _ in range(40)]
    headed = rng.random() < 0.4
    heading = rng.choice(task.instructions) + rng.choice((".", ":", "")) if headed else ""
    return _written(pairs, heading, rng.randint(150, 640), rng)


def _written(pairs: list[Pair], heading: str, limit: int, rng: random.Random) -> str:
    """The first pairs in a random layout, at least two, about ``limit`` characters in all."""
    layout = draw_layout(rng)
    while pairs[0][0][-1].isdigit() and re.search(r"} [-+] {", layout):
        layout = draw_layout(rng)  # "60 - 75" would read as a sum
    size, count = 0, 0
    while count < len(pairs) and (size < limit or count < 2):
        size += sum(map(len, pairs[count])) + len(layout) - 4
        count += 1
    return render(pairs[:count], layout, heading)

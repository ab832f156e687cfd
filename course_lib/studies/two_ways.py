"""The same labelled examples in the prompt, and as training data: in-context learning and SFT.

Two tasks, both made anew for every seed. A *rule*: four categories of words under new names, asked
about other words than the examples; one example a category says it all. A *table*: so many words,
each with a name drawn for it, asked about the words of the table; nothing follows from anything,
so an entry that is not in the prompt cannot be known from it.
The corpus of the base model was built to teach both in context (``world.lists``: label maps, codes
that come back), with other names than these.
"""

import random
from collections.abc import Sequence
from statistics import fmean

import torch

from course_lib import plotting
from course_lib.chat import course_format, encode_chat, turns
from course_lib.completion import complete, context_size, fit, token_counter
from course_lib.measuring import parse_answer
from course_lib.models import Llama
from course_lib.rows import endless
from course_lib.runtime import device
from course_lib.studies import tuning
from course_lib.studies.stored import Results
from course_lib.world import lexicon
from course_lib.world.heldout import is_held_out

RULES, TABLES = (4, 8, 24), (8, 32, 64, 128)
WAYS = {"prompt": {}, "SFT": {"way": "SFT"}}
GRID = {
    **{f"{task} {n}, {name}": {"task": task, "examples": n, **way}
       for task, sizes in (("rule", RULES), ("table", TABLES)) for n in sizes
       for name, way in WAYS.items()},
    "rule 8, names shuffled": {"task": "rule", "examples": 8, "shuffled": True},
    "rule 8, untrained": {"task": "rule", "examples": 8, "trained": False},
}  # fmt: skip
SEEDS = range(8)
MODELS = ("base",)
USES = (tuning.tuned, tuning.chat_replies, complete, fit, encode_chat)
CHECKS = {"rule 8, prompt": ("correct",), "rule 8, SFT": ("correct",),
          "table 32, SFT": ("correct",)}  # fmt: skip
LEAST_SPREAD = {"correct": 0.03}  # half of one item of sixteen
ROOM, ASKED = 6, 64
STEPS, BATCH, LR = 60, 16, 2e-3

Pairs = list[tuple[str, str]]


def draw_rule(rng: random.Random, examples: int) -> tuple[Pairs, Pairs]:
    """(examples, questions): the examples take turns between the four categories."""
    kinds = rng.sample(sorted(lexicon.CATEGORIES), 4)
    names = rng.sample(lexicon.RESERVED_LABELS, 4)
    columns, asked = [], []
    for kind, name in zip(kinds, names, strict=True):
        pairs = [(w, name) for w in lexicon.CATEGORIES[kind] if not is_held_out("item", "label", w)]
        rng.shuffle(pairs)
        asked += pairs[:4]
        columns.append(pairs[4:])
    turn = [c[i] for i in range(max(map(len, columns))) for c in columns if i < len(c)]
    return turn[:examples], asked


def draw_table(rng: random.Random, entries: int) -> tuple[Pairs, Pairs]:
    """(entries, questions): every question is about an entry."""
    words = rng.sample([w for w in lexicon.OPEN_WORDS if w not in lexicon.RESERVED_LABELS], entries)
    table = [(word, rng.choice(lexicon.RESERVED_LABELS)) for word in words]
    return table, rng.sample(table, min(entries, ASKED))


def by_prompt(model, tokenizer, pairs: Pairs, asked: Pairs, rng: random.Random) -> dict:
    """Ask below as many of the pairs as fit, in random order; on the table, apart for each."""
    count, budget = token_counter(tokenizer), context_size(model) - ROOM
    prompts, shown = [], []
    for x, _ in asked:

        def render(some: Sequence[tuple[str, str]], x: str = x) -> str:
            return "".join(f"{a} -> {b}\n" for a, b in some) + f"{x} ->"

        shown.append(fit(rng.sample(pairs, len(pairs)), render, budget, count))
        prompts.append(render(shown[-1]))
    texts = complete(model, tokenizer, prompts, ROOM)
    hits = [parse_answer(t) == y for t, (_, y) in zip(texts, asked, strict=True)]
    measures = {"correct": fmean(hits), "shown": fmean(map(len, shown)),
                "tokens": fmean(map(count, prompts))}  # fmt: skip
    seen = [pair in some for pair, some in zip(asked, shown, strict=True)]
    for name, flag in (("correct_shown", True), ("correct_left_out", False)):
        if part := [hit for hit, s in zip(hits, seen, strict=True) if s == flag]:
            measures[name] = fmean(part)
    return measures


def by_tuning(model, tokenizer, pairs: Pairs, asked: Pairs, seed: int, **how) -> dict:
    """Train on the pairs in the chat format, and ask without any example."""
    rows = [encode_chat(tokenizer, turns(x, y)) for x, y in pairs]
    stream = endless(rows, torch.Generator().manual_seed(seed))
    model = tuning.tuned(model, tokenizer, stream, steps=STEPS, lr=LR, batch_size=BATCH,
                         **how)  # fmt: skip
    replies = tuning.chat_replies(model, tokenizer, [x for x, _ in asked], ROOM)
    hits = [parse_answer(t) == y for (t, _), (_, y) in zip(replies, asked, strict=True)]
    count = token_counter(tokenizer)
    return {"correct": fmean(hits), "shown": 0.0,
            "tokens": fmean(count(course_format(turns(x), True)) for x, _ in asked),
            "tokens_trained": STEPS * BATCH * fmean(len(r["input_ids"]) for r in rows)}  # fmt: skip


def run(setting: dict, seed: int) -> dict[str, float]:
    """One row: ``correct``, ``tokens`` read a question, ``shown`` examples in the prompt."""
    rng = random.Random(f"two ways {seed} {setting['task']} {setting['examples']}")
    model, tokenizer = tuning.shipped()
    draw = draw_rule if setting["task"] == "rule" else draw_table
    pairs, asked = draw(rng, setting["examples"])
    if setting.get("shuffled"):  # the same words and names, and no rule
        names = [y for _, y in pairs]
        rng.shuffle(names)
        pairs = [(x, y) for (x, _), y in zip(pairs, names, strict=True)]
    if not setting.get("trained", True):
        model = Llama(model.config, torch.Generator().manual_seed(seed)).to(device()).eval()
    if setting.get("way") == "SFT":
        return by_tuning(model, tokenizer, pairs, asked, seed)
    return by_prompt(model, tokenizer, pairs, asked, rng)


def draw(results: Results):
    """Accuracy against examples, one panel a task, with chance and what the prompt left out."""
    fig, axes = plotting.panels("The same examples, two ways", 2, size=(7.2, 3.4), sharey=True)
    for ax, task, sizes in ((axes[0], "rule", RULES), (axes[1], "table", TABLES)):
        for i, (way, colour) in enumerate((("prompt", "blue"), ("SFT", "orange"))):
            per_size = [results.of(f"{task} {n}, {way}", "correct") for n in sizes]
            for n, values in zip(sizes, per_size, strict=True):
                ax.plot([n] * len(values), list(values), linestyle="none", marker=".",
                        color=plotting.COLOURS[colour], alpha=0.4)
            ax.plot(sizes, [v.mean for v in per_size], color=plotting.COLOURS[colour],
                    marker=plotting.MARKERS[i], linestyle=plotting.DASHES[i],
                    label="in the prompt" if way == "prompt" else "SFT")
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, sizes)
        ax.set(xlabel="labelled examples", ylim=(-0.04, 1.04))
    fits = results.of(f"table {TABLES[-1]}, prompt", "shown").mean
    axes[0].set(title="a rule", ylabel="correct answers (share)")
    axes[0].axhline(1 / 4, color=plotting.INK, linewidth=1, linestyle=":")
    axes[0].text(RULES[0], 0.27, "chance", fontsize=8)
    axes[1].set_title("a table")
    axes[1].axvline(fits, color=plotting.INK, linewidth=1, linestyle=":")
    axes[1].text(fits * 0.95, 0.12, f"{fits:.0f} fit", fontsize=8, ha="right")
    chance = 1 / len(lexicon.RESERVED_LABELS)
    axes[1].text(TABLES[0], chance + 0.02, "chance", fontsize=8)
    axes[1].axhline(chance, color=plotting.INK, linewidth=1, linestyle=":")
    axes[0].legend(fontsize=8, loc="lower right")
    return fig

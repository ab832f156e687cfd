"""Which tokens carry the loss: the response, the whole chat, or the response without its end.

The same rows and the same steps each time, with endlessly many examples and with eight a task (Shi
et al., 2024, found a loss on prompts to help where responses are short and examples few).
"""

from itertools import islice

import torch

from course_lib import plotting
from course_lib.ops import IGNORE_INDEX, token_logprobs
from course_lib.rows import collate, endless
from course_lib.studies import tuning
from course_lib.studies.stored import Results

TASKS = ("plural", "opposite", "past", "home", "region", "spell", "first_letter", "sentiment")
FEW = 8
GRID = {
    "response": {},
    "whole chat": {"mask_prompt": False},
    "response, end masked": {"end": False},
    "response, few examples": {"few": True},
    "whole chat, few examples": {"few": True, "mask_prompt": False},
}
SEEDS = range(8)
MODELS = ("base",)
USES = (tuning.tuned, tuning.mixture, tuning.graded, tuning.chat_replies)
CHECKS = {"response": ("correct", "well formed"), "whole chat": ("prompt nats",)}
LEAST_SPREAD = {"correct": 0.02, "well formed": 0.02, "prompt nats": 0.02}
STEPS, LR, TEMPLATES, EACH = 24, 6e-4, 2, 4


def without_end(rows):
    """The same rows, the token that ends the response not learnt."""
    for row in rows:
        yield {**row, "labels": [*row["labels"][:-1], IGNORE_INDEX]}


def stream_of(tokenizer, seed: int, few: bool = False, end: bool = True):
    """The training rows of a setting."""
    rows = tuning.mixture(tokenizer, TASKS, seed, templates=TEMPLATES)
    if few:
        rows = endless(list(islice(rows, FEW * len(TASKS))), torch.Generator().manual_seed(seed))
    return rows if end else without_end(rows)


@torch.no_grad()
def prompt_nats(model, tokenizer, seed: int) -> float:
    """Mean -log p of a token of new prompts: how well the model writes what users ask."""
    rows = islice(tuning.mixture(tokenizer, TASKS, 1000 + seed, templates=TEMPLATES), 48)
    prompts = [{"input_ids": row["input_ids"],
                "labels": [i if label == IGNORE_INDEX else IGNORE_INDEX
                           for i, label in zip(row["input_ids"], row["labels"], strict=True)]}
               for row in rows]  # fmt: skip
    batch = collate(prompts, tokenizer.pad_token_id)
    batch = {name: tensor.to(tuning.device()) for name, tensor in batch.items()}
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    counted = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
    return -(token_logprobs(logits, batch["labels"]).sum() / counted).item()


def run(setting: dict, seed: int) -> dict[str, float]:
    """One row: ``correct`` and ``well formed`` of held-out instructions, ``prompt nats``."""
    base, tokenizer = tuning.shipped()
    rows = stream_of(tokenizer, seed, setting.get("few", False), setting.get("end", True))
    model = tuning.tuned(base, tokenizer, rows, steps=STEPS, lr=LR,
                         mask_prompt=setting.get("mask_prompt", True))  # fmt: skip
    some = tuning.held_out_examples(TASKS, seed, EACH, templates=TEMPLATES)
    scores = tuning.chat_scores(model, tokenizer, some)
    return {"correct": scores["correct"], "well formed": scores["well_formed"],
            "prompt nats": prompt_nats(model, tokenizer, seed)}  # fmt: skip


def draw(results: Results):
    """Three measures, one panel each, a point a seed."""
    names = {"correct": "correct answers (share)", "well formed": "one line and end (share)",
             "prompt nats": "loss on prompts (nats/token)"}  # fmt: skip
    fig, axes = plotting.panels("Which tokens carry the loss", 3, size=(7.2, 3.2))
    for ax, (measure, label) in zip(axes, names.items(), strict=True):
        for y, setting in enumerate(results.settings):
            values = results.of(setting, measure)
            ax.plot(list(values), [y] * len(values), linestyle="none", marker=".",
                    color=plotting.COLOURS["blue"], alpha=0.6)  # fmt: skip
            ax.plot(values.mean, y, marker="|", markersize=16, markeredgewidth=3,
                    color=plotting.COLOURS["orange"])  # fmt: skip
        ax.set_yticks(range(len(results.settings)), results.settings if ax is axes[0] else [],
                      fontsize=8)  # fmt: skip
        ax.set_xlabel(label, fontsize=8)
        ax.set_ylim(len(results.settings) - 0.5, -0.5)
        ax.set_xlim(left=0)
    return fig

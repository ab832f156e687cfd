"""What the studies of FLAN and human preference share: split, wordings, mixtures, pairs of texts.

Everything is a function of its arguments. Simplified away: types of task are held out by cluster
only; FLAN also drops clusters that overlap less plainly than ``instructions.KIN``.
"""

import copy
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice

import torch
from torch import Tensor, nn

from course_lib.chat import encode_chat, turns
from course_lib.completion import complete
from course_lib.measuring import parse_answer
from course_lib.ops import IGNORE_INDEX, sequence_logprobs
from course_lib.rows import Row, collate
from course_lib.runtime import model_device
from course_lib.studies.tuning import chat_replies, mixture, shipped, tuned
from course_lib.world.instructions import (
    CLUSTERS,
    INSTRUCTIONS,
    Example,
    ask_for,
    examples,
    split_clusters,
)
from course_lib.world.words import QUESTIONS

HELD_OUT = tuple(cluster for cluster, names in CLUSTERS.items() if set(names) <= set(QUESTIONS))
"""The declared rule: clusters whose every task the corpus asks for in questions with answers."""
TRAINED, UNSEEN = map(tuple, split_clusters(HELD_OUT))
WORDINGS = ("corpus", "question", "command")
"""The corpus's own question, another question, a command beside the input."""
STEPS, ROWS, LR, BLOCK = 24, 16, 1.6e-3, 256
"""Of every tuning: steps, rows a step, the largest learning rate, tokens of a packed row."""


@cache
def frozen(stage: str = "base") -> nn.Module:
    """A shipped model whose embeddings are kept: in so few and large steps the vectors of all
    words would drift, those that no row contains too."""
    model = copy.deepcopy(shipped(stage)[0])
    model.embed.weight.requires_grad_(False)
    return model


@cache
def tokens_of(name: str) -> float:
    """Mean number of response tokens of a task, its end counted."""
    some = list(islice(examples(0, name), 20))
    _, tokenizer = shipped()
    return sum(len(tokenizer(f" {e.response}")["input_ids"]) + 1 for e in some) / len(some)


def task_mixture(names: Sequence[str], seed: int, **how) -> Iterator[Row]:
    """Endless rows of the tasks, each with about as many response tokens as the others."""
    rates = [1 / tokens_of(name) for name in names]
    return mixture(shipped()[1], names, seed, rates=rates, block_size=BLOCK, **how)


def tuned_on(
    rows: Iterable[Row], start: nn.Module | None = None, *, steps: int = STEPS, lr: float = LR,
    batch_size: int = ROWS,
) -> nn.Module:  # fmt: skip
    """The base model (or ``start``) after a short SFT on the rows, its embeddings frozen."""
    return tuned(frozen() if start is None else start, shipped()[1], rows, steps=steps, lr=lr,
                 batch_size=batch_size, block_size=BLOCK, schedule="linear")  # fmt: skip


# --- items --------------------------------------------------------------------------------------


def ask_in(name: str, x: str, rng: random.Random, wording: str) -> str:
    """The prompt of an input in one of ``WORDINGS``; tasks without questions use templates."""
    task = INSTRUCTIONS[name]
    if wording == "question" and len(task.questions) > 1:
        return rng.choice(task.questions[1:]).replace("{x}", x)
    if wording == "corpus":
        return ask_for(task, x, rng, "question", templates=1)
    return ask_for(task, x, rng, "command")


def items_of(
    names: Sequence[str], wording: str, seed: int, each: int = 6, held_out: float = 0.5
) -> list[Example]:
    """Items of every task. A share of them is held out of the corpus and of all training.

    The types are new to every model that is asked, and of days and months there are few: so by
    default only half of the items are new too.
    """
    rng = random.Random(f"items {seed} {wording}")
    items = []
    for name in names:
        for _ in range(each):
            x, y = INSTRUCTIONS[name].draw(rng, rng.random() < held_out)
            items.append(Example(ask_in(name, x, rng, wording), y, name))
    return items


def in_the_chat(model: nn.Module, items: Sequence[Example], room: int = 10) -> list[bool]:
    """Which items the model answers in the chat format."""
    replies = chat_replies(model, shipped()[1], [item.prompt for item in items], room)
    return [parse_answer(text) == parse_answer(item.response)
            for (text, _), item in zip(replies, items, strict=True)]  # fmt: skip


def after_q_and_a(model: nn.Module, items: Sequence[Example], room: int = 10) -> list[bool]:
    """Which items the model answers as a document: after ``Q: … A:``, no example before it."""
    prompts = [f"Q: {item.prompt}\nA:" for item in items]
    texts = complete(model, shipped()[1], prompts, room)
    return [parse_answer(text) == parse_answer(item.response)
            for text, item in zip(texts, items, strict=True)]  # fmt: skip


def share(hits: Iterable[bool]) -> float:
    """The share of hits."""
    hits = list(hits)
    return sum(hits) / len(hits)


# --- which of two texts is the likelier ---------------------------------------------------------


def continuation_row(prompt: str, text: str) -> Row:
    """A row whose labels are the continuation of a document."""
    ids, more = (shipped()[1](t, add_special_tokens=False)["input_ids"] for t in (prompt, text))
    return {"input_ids": ids + more, "labels": [IGNORE_INDEX] * len(ids) + more}


def chat_row(prompt: str, text: str) -> Row:
    """A row whose labels are the reply."""
    return encode_chat(shipped()[1], turns(prompt, text))


@torch.no_grad()
def logps(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    """log p(y | x) of each row's labelled tokens, summed: (B,), in nats."""
    sums = []
    for i in range(0, len(rows), 64):
        batch = collate(rows[i : i + 64], shipped()[1].pad_token_id)
        batch = {name: tensor.to(model_device(model)) for name, tensor in batch.items()}
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        sums.append(sequence_logprobs(logits, batch["labels"]))
    return torch.cat(sums).cpu()


def likelier(model: nn.Module, first: Sequence[Row], second: Sequence[Row]) -> float:
    """Share of the pairs whose first text has the larger probability."""
    return (logps(model, first) > logps(model, second)).float().mean().item()

"""What the studies on instruction tuning share: rows, an SFT'd copy of a model, and its scores.

Everything is a function of its arguments: streams and items are drawn from seeds, the same on
every machine. Items of the scores are held out of the corpus and of every training example.
"""

import copy
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice

import torch
from torch import Generator, nn

from course_lib.chat import course_format, encode_chat, turns
from course_lib.completion import complete, context_size
from course_lib.measuring import parse_answer
from course_lib.rollout import responses, rollout
from course_lib.rows import Row, batches, collate, document_row, mix, pack
from course_lib.runtime import device, model_device
from course_lib.sft import sft_loss
from course_lib.shipped import load_model
from course_lib.training import train
from course_lib.world.corpus import VALIDATION_SEED, documents
from course_lib.world.evaluate import assemble, draw_items
from course_lib.world.instructions import INSTRUCTIONS, Example, draw_example, examples

REPLAY_SEED = 500
"""Of the first corpus that replay is read from: the base model saw none of its documents."""
ROOM, ROOM_FOR_STEPS = 20, 64
"""The most new tokens of a reply: a short answer, and a chain of steps."""


@cache
def shipped(stage: str = "base") -> tuple[nn.Module, object]:
    """A shipped model and its tokenizer, read once; nothing here changes them."""
    return load_model(stage, device())


# --- rows ---------------------------------------------------------------------------------------


def task_rows(tokenizer, name: str, seed: int, **how) -> Iterator[Row]:
    """Endless rows of a task's training examples in the course's chat format.

    Args:
        how: ``form`` and ``templates`` of ``instructions.ask_for``.
    """
    for example in examples(seed, name, **how):
        yield encode_chat(tokenizer, turns(example.prompt, example.response))


def replay_rows(tokenizer, seed: int, block_size: int) -> Iterator[Row]:
    """Endless documents of the pretraining kind that the base model did not read."""
    for document in documents(REPLAY_SEED + seed):
        yield document_row(tokenizer, document.text, block_size)


def mixture(
    tokenizer, names: Sequence[str], seed: int, *, replay: float = 0.0, block_size: int = 128,
    rates: Sequence[float] | None = None, **how,
) -> Iterator[Row]:  # fmt: skip
    """Endless rows of several tasks, and documents among them.

    Args:
        names: of ``INSTRUCTIONS``.
        replay: share of the rows that are documents, cut to ``block_size`` tokens.
        rates: how often each task is drawn; all alike when None.
        how: see ``task_rows``.
    """
    rates = rates or [1 / len(names)] * len(names)
    sources = [task_rows(tokenizer, name, seed, **how) for name in names]
    rates = [(1 - replay) * rate / sum(rates) for rate in rates]
    if replay:
        sources.append(replay_rows(tokenizer, seed, block_size))
        rates.append(replay)
    return mix(sources, rates, Generator().manual_seed(seed))


def tuned(
    start: nn.Module, tokenizer, rows: Iterable[Row], *, steps: int, lr: float,
    batch_size: int = 16, block_size: int = 128, warmup_steps: int = 5,
    schedule: str = "constant", mask_prompt: bool = True, packed: bool = True,
) -> nn.Module:  # fmt: skip
    """A copy of ``start`` after SFT with AdamW in fp32, in evaluation mode.

    Args:
        rows: a stream; every step takes ``batch_size`` of them.
        block_size: rows are cut to it, and packed ones have so many tokens at most.

    Raises:
        ValueError: the rows ran out before the last step.
    """
    model = copy.deepcopy(start)
    stream = batches(rows, batch_size, tokenizer.pad_token_id, block_size=block_size,
                     packed=packed, mask_prompt=mask_prompt)  # fmt: skip
    history = train(model, stream, sft_loss, max_steps=steps, lr=lr, warmup_steps=warmup_steps,
                    schedule=schedule, progress=False)  # fmt: skip
    if len(history) < steps:
        raise ValueError(f"The rows were used up after {len(history)} of {steps} steps.")
    return model.eval()


# --- scores in the chat format ------------------------------------------------------------------


def held_out_examples(names: Sequence[str], seed: int, each: int = 1, **how) -> list[Example]:
    """``each`` held-out examples of every task, the same for the same seed."""
    rng = random.Random(f"held-out examples {seed}")
    return [draw_example(rng, name, True, **how) for name in names for _ in range(each)]


def well_formed(text: str, ended: bool) -> bool:
    """Whether a reply is one line, not empty, that the model ended by itself."""
    return ended and bool(text.strip()) and "\n" not in text.strip()


def chat_replies(
    model: nn.Module, tokenizer, prompts: Sequence[str], room: int = ROOM
) -> list[tuple[str, bool]]:
    """(text, whether it ended) of the greedy reply to each prompt in the course's chat format."""
    texts = [course_format(turns(prompt), True) for prompt in prompts]
    batch = rollout(model, [tokenizer(text)["input_ids"] for text in texts], temperature=0,
                    max_new_tokens=room, eos_token_id=tokenizer.eos_token_id)  # fmt: skip
    ended = batch["ended"].tolist()
    return [(tokenizer.decode(ids[:-1] if end else ids), end)
            for ids, end in zip(responses(batch), ended, strict=True)]  # fmt: skip


def graded(model: nn.Module, tokenizer, some: Sequence[Example]) -> list[tuple[bool, bool]]:
    """(correct, well formed) of each example. Steps may differ, the answer may not."""
    grades: dict[int, tuple[bool, bool]] = {}
    for long in (False, True):  # those with steps need room; the others would wait for them
        part = [i for i, e in enumerate(some)
                if (INSTRUCTIONS[e.task].cluster == "reasoning") == long]  # fmt: skip
        if not part:
            continue
        replies = chat_replies(model, tokenizer, [some[i].prompt for i in part],
                               ROOM_FOR_STEPS if long else ROOM)  # fmt: skip
        for i, (text, ended) in zip(part, replies, strict=True):
            correct = parse_answer(text) == parse_answer(some[i].response)
            grades[i] = correct, well_formed(text, ended)
    return [grades[i] for i in range(len(some))]


def chat_scores(model: nn.Module, tokenizer, some: Sequence[Example]) -> dict[str, float]:
    """Shares of the examples: ``correct`` and ``well_formed``."""
    grades = graded(model, tokenizer, some)
    correct, formed = (sum(column) / len(grades) for column in zip(*grades, strict=True))
    return {"correct": correct, "well_formed": formed}


# --- what a base model can do -------------------------------------------------------------------

ABILITIES = {
    "facts": "facts", "labels": "unseen_labels_8shot", "words": "words_4shot",
    "reading": "passage2", "sums": "expr4_steps", "hops": "twohop_steps",
}  # fmt: skip
"""Ability -> figure of ``world.evaluate``: questions about the world, labels never seen after
eight examples, word tasks after four, a text about two strangers, and few-shot chains of steps."""
CHAINS = ("sums", "hops")


def abilities(model: nn.Module, tokenizer, seed: int, items: int = 24) -> dict[str, float]:
    """The seven abilities that tuning might cost, none of them in the chat format.

    Returns:
        the accuracy on each of ``ABILITIES``, and ``perplexity``.
    """
    table = {}
    for names in ([n for n in ABILITIES if n not in CHAINS], CHAINS):
        drawn = [(n, item) for n in names for item in draw_items(ABILITIES[n], seed, items)]
        prompts = [assemble(item, tokenizer, context_size(model)) for _, item in drawn]
        room = max(item.max_new_tokens for _, item in drawn)
        written = complete(model.eval(), tokenizer, prompts, room)
        for name in names:
            texts = [text for (n, _), text in zip(drawn, written, strict=True) if n == name]
            answers = [item.answer for n, item in drawn if n == name]
            hits = [parse_answer(t) == a for t, a in zip(texts, answers, strict=True)]
            table[name] = sum(hits) / len(hits)
    return table | {"perplexity": perplexity(model, tokenizer, seed)}


@torch.no_grad()
def perplexity(model: nn.Module, tokenizer, seed: int, count: int = 32) -> float:
    """exp of the mean loss a token on ``count`` validation documents of the pretraining kind."""
    width = int(min(context_size(model), 1024))
    some = islice(documents(VALIDATION_SEED + seed), count)
    rows = pack((document_row(tokenizer, d.text, width) for d in some), width)
    batch = {k: v.to(model_device(model)) for k, v in collate(rows, tokenizer.pad_token_id).items()}
    return math.exp(sft_loss(model.eval(), batch).item())

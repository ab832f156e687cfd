"""What the studies of parameter-efficient fine-tuning share: a new task, and models made ready.

The task gives each of the twelve categories of words a name that is drawn for the seed ("animals
are called candle"), and asks about words that no training row has. A model that knows the
categories has twelve names to learn; nothing it was ever told says which.
"""

import copy
import random
from collections.abc import Iterator
from statistics import fmean

from torch import Generator, nn

from course_lib.chat import course_format, encode_chat, turns
from course_lib.measuring import parse_answer
from course_lib.peft import add_adapters, add_lora, add_soft_prompt, freeze_except
from course_lib.rows import Row, endless
from course_lib.studies import tuning
from course_lib.world import lexicon

Pairs = list[tuple[str, str]]
ASKED = 4
"""Words of each category that are kept for the questions."""
QUESTION = "Give the code of the word: {}"
STEPS, BATCH, ROOM = 80, 16, 6
ATTENTION = ["q", "v"]


def draw_codes(seed: int, number: int = 0) -> tuple[Pairs, Pairs]:
    """(word, code) of the training and of the questions; of another ``number`` others."""
    rng = random.Random(f"codes {seed} {number}")
    codes = rng.sample(lexicon.RESERVED_LABELS, len(lexicon.CATEGORIES))
    trained, asked = [], []
    for words, code in zip(lexicon.CATEGORIES.values(), codes, strict=True):
        pairs = [(word, code) for word in rng.sample(list(words), len(words))]
        asked += pairs[:ASKED]
        trained += pairs[ASKED:]
    return trained, asked


def prompt_ids(tokenizer, word: str) -> list[int]:
    """The token ids of a question in the course's chat format, up to where the reply begins."""
    return tokenizer(course_format(turns(QUESTION.format(word)), True))["input_ids"]


def rows(tokenizer, pairs: Pairs, seed: int) -> Iterator[Row]:
    """Endless training rows in random order."""
    some = [encode_chat(tokenizer, turns(QUESTION.format(x), y)) for x, y in pairs]
    return endless(some, Generator().manual_seed(seed))


def correct(model: nn.Module, tokenizer, asked: Pairs) -> float:
    """Share of the words whose reply is their code."""
    replies = tuning.chat_replies(model, tokenizer, [QUESTION.format(x) for x, _ in asked], ROOM)
    return fmean(parse_answer(text) == y for (text, _), (_, y) in zip(replies, asked, strict=True))


def prepared(
    start: nn.Module, seed: int, *, lora: dict | None = None, adapters: int = 0, prompt: int = 0,
    parts: tuple[str, ...] = (), last_layers: int = 0,
) -> nn.Module:  # fmt: skip
    """A copy of a model of which a method's part alone is trained; all of it where none is given.

    Args:
        lora: arguments of ``add_lora``. adapters: width of bottlenecks behind both sublayers.
        prompt: number of soft tokens. parts, last_layers: of ``freeze_except``.
    """
    model, generator = copy.deepcopy(start), Generator().manual_seed(seed)
    if lora:
        return add_lora(model, **{"target_modules": "all-linear", **lora}, generator=generator)
    if adapters:
        return add_adapters(model, adapters, generator=generator)
    if prompt:
        return add_soft_prompt(model, prompt, generator=generator)
    parts = parts or (() if last_layers else (".*",))
    return freeze_except(model, *parts, last_layers=last_layers)


def tuned(
    start: nn.Module, tokenizer, pairs: Pairs, seed: int, lr: float, steps: int = STEPS, **method
) -> nn.Module:  # fmt: skip
    """A model after ``steps`` on the pairs, with a method of ``prepared``."""
    return tuning.tuned(prepared(start, seed, **method), tokenizer, rows(tokenizer, pairs, seed),
                        steps=steps, lr=lr, batch_size=BATCH, packed=False)  # fmt: skip

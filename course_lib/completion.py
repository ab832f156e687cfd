"""From a prompt to an answer: what the prompting module and the world's evaluation share.

A model is anything that follows transformers' calling convention, together with its tokenizer, or
any function from text to text, such as one that calls an API.
Simplified away: retries and rate limits of an API; a stop string of several tokens is cut off
afterwards, and does not end the writing. Chats are in ``course_lib.chat``.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import nn

from course_lib.generation import EndTokens, _block_size, end_ids
from course_lib.measuring import cut
from course_lib.rollout import responses, rollout
from course_lib.runtime import model_device as model_device

TextModel = Callable[[str], str]
Model = nn.Module | TextModel
T = TypeVar("T")


# --- prompts that fit ---------------------------------------------------------------------------


def token_counter(tokenizer, add_special_tokens: bool = True) -> Callable[[str], int]:
    """The function that counts a text's tokens.

    Args:
        add_special_tokens: count a start token that the tokenizer puts before every text; not for
            chats, whose format has written theirs.
    """
    return lambda text: len(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])


def context_size(model: nn.Module) -> float:
    """The most tokens that the model takes; infinite where its positions have no end (ALiBi)."""
    return _block_size(model)


def fit(
    examples: Sequence[T],
    render: Callable[[Sequence[T]], str],
    budget: float,
    count_tokens: Callable[[str], int],
) -> tuple[T, ...]:
    """The last examples that fit: those farthest from the query, the first ones, are dropped.

    Args:
        render: the whole prompt with these examples; it is counted whole, for a tokenizer may
            merge across the pieces.
        budget: how many tokens the prompt may have, the completion not included.

    Raises:
        ValueError: not even the prompt without examples fits.

    Example: 6 words, of which the query takes 1 and each example 2.
        >>> fit(["a b ", "c d ", "e f "], lambda xs: "".join(xs) + "q", 6, lambda t: len(t.split()))
        ('c d ', 'e f ')
    """
    bare = count_tokens(render(()))
    if bare > budget:
        raise ValueError(
            f"The prompt needs {bare - budget} tokens more than the budget of {budget}, without "
            "any example: shorten it, or leave less room for new tokens."
        )
    kept: tuple[T, ...] = ()
    for start in range(len(examples) - 1, -1, -1):
        longer = tuple(examples[start:])
        if count_tokens(render(longer)) > budget:
            break
        kept = longer
    return kept


# --- completions --------------------------------------------------------------------------------


def encode(
    tokenizer, texts: Sequence[str], add_special_tokens: bool = True
) -> list[list[int]]:  # fmt: skip
    """Token ids of prompts.

    Args:
        add_special_tokens: see ``token_counter``.

    Raises:
        ValueError: one text instead of several, an empty prompt.
    """
    _check_texts(texts)
    rows = [list(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])
            for text in texts]  # fmt: skip
    if [] in rows:
        raise ValueError(
            f"Prompt {rows.index([])} has no token: there is nothing to continue. Start from the "
            "end-of-text token instead."
        )
    return rows


def _check_texts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str):
        raise ValueError("prompts is one text: put it into a list, [prompt].")


def watched(items: Iterable[T], shown: bool, name: str) -> Iterable[T]:
    """The items, with a progress bar where it is wanted."""
    if not shown:
        return items
    from tqdm.auto import tqdm

    return tqdm(items, desc=name)


def complete(
    model: Model,
    tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float | None = None,
    stop: str | None = "\n",
    generator: torch.Generator | None = None,
    eos_token_id: EndTokens = None,
    add_special_tokens: bool = True,
    batch_size: int = 128,
    progress: bool = False,
) -> list[str]:
    """What follows each prompt, up to ``stop`` or the end of the text, without either.

    Args:
        model: see the module; a function from text to text gets one prompt at a time and settles
            length, temperature and randomness itself.
        tokenizer: None for a function from text to text.
        temperature, top_p, generator: see ``generate``; greedy by default.
        stop: the completion ends before it; None = where the model ends it.
        eos_token_id: where the model ends it; the tokenizer's when None.
        add_special_tokens: see ``token_counter``.

    Raises:
        ValueError: a model without its tokenizer, an empty prompt, a prompt that does not fit.
        TypeError: a function that returns something else than text.
    """
    _check_texts(prompts)
    if not isinstance(model, nn.Module):
        return [cut(_ask(model, p), stop) for p in watched(prompts, progress, "completions")]
    if tokenizer is None:
        raise ValueError("This model reads token ids: give its tokenizer too.")
    if eos_token_id is None:
        eos_token_id = getattr(tokenizer, "eos_token_id", None)
    ends = end_ids(eos_token_id)
    completions: list[str] = []
    for i in watched(range(0, len(prompts), batch_size), progress, "completions"):
        rows = encode(tokenizer, prompts[i : i + batch_size], add_special_tokens)
        batch = rollout(model, rows, max_new_tokens=max_new_tokens, temperature=temperature,
                        top_p=top_p, eos_token_id=(*ends, *_stop_token(tokenizer, stop)),
                        generator=generator)  # fmt: skip
        for row in responses(batch):
            text = tokenizer.decode(row[:-1] if row[-1] in ends else row)
            completions.append(cut(text, stop))
    return completions


def _ask(model: TextModel, prompt: str) -> str:
    text = model(prompt)
    if not isinstance(text, str):
        raise TypeError(
            f"The model returned {type(text).__name__} for a prompt: a function that serves as a "
            "model must take one text and return one text."
        )
    return text


def _stop_token(tokenizer, stop: str | None) -> tuple[int, ...]:
    """The token that ``stop`` is, if it is one."""
    ids = tokenizer(stop, add_special_tokens=False)["input_ids"] if stop else ()
    return tuple(ids) if len(ids) == 1 else ()

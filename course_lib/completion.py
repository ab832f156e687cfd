"""From a prompt to an answer: what the prompting module and the world's evaluation share.

A model is anything that follows transformers' calling convention, together with its tokenizer, or
any function from text to text, such as one that calls an API.
Simplified away: chat templates; retries and rate limits of an API; a stop string of several tokens
is cut off afterwards, and does not end the writing.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from course_lib.generation import _block_size, generate
from course_lib.measuring import cut

TextModel = Callable[[str], str]
Model = nn.Module | TextModel
T = TypeVar("T")


# --- prompts that fit ---------------------------------------------------------------------------


def token_counter(tokenizer) -> Callable[[str], int]:
    """The function that counts a text's tokens."""
    return lambda text: len(tokenizer(text)["input_ids"])


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


def encode(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts.

    Raises:
        ValueError: one text instead of several, an empty prompt.
    """
    _check_texts(texts)
    rows = [list(tokenizer(text)["input_ids"]) for text in texts]
    if [] in rows:
        raise ValueError(
            f"Prompt {rows.index([])} has no token: there is nothing to continue. Start from the "
            "end-of-text token instead."
        )
    return rows


def _check_texts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str):
        raise ValueError("prompts is one text: put it into a list, [prompt].")


def pad_left(rows: Sequence[Sequence[int]], pad: int = 0) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, (B, T), of rows of different lengths.

    Example:
        >>> pad_left([[5, 6], [7]])
        (tensor([[5, 6], [0, 7]]), tensor([[1, 1], [0, 1]]))
    """
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def watched(items: Iterable[T], shown: bool, name: str) -> Iterable[T]:
    """The items, with a progress bar where it is wanted."""
    if not shown:
        return items
    from tqdm.auto import tqdm

    return tqdm(items, desc=name)


def model_device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


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

    Raises:
        ValueError: a model without its tokenizer, an empty prompt, a prompt that does not fit.
        TypeError: a function that returns something else than text.
    """
    _check_texts(prompts)
    if not isinstance(model, nn.Module):
        return [cut(_ask(model, p), stop) for p in watched(prompts, progress, "completions")]
    if tokenizer is None:
        raise ValueError("This model reads token ids: give its tokenizer too.")
    end, eos = _stop_token(tokenizer, stop), getattr(tokenizer, "eos_token_id", None)
    completions: list[str] = []
    for i in watched(range(0, len(prompts), batch_size), progress, "completions"):
        ids, mask = pad_left(encode(tokenizer, prompts[i : i + batch_size]))
        out = generate(model, ids.to(model_device(model)), mask.to(model_device(model)),
                       max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
                       eos_token_id=end, generator=generator)  # fmt: skip
        for row in out[:, ids.shape[1] :].tolist():
            row = row[: row.index(eos)] if eos in row else row
            completions.append(cut(tokenizer.decode(row), stop))
    return completions


def _ask(model: TextModel, prompt: str) -> str:
    text = model(prompt)
    if not isinstance(text, str):
        raise TypeError(
            f"The model returned {type(text).__name__} for a prompt: a function that serves as a "
            "model must take one text and return one text."
        )
    return text


def _stop_token(tokenizer, stop: str | None) -> int | None:
    """The token that ends a row: ``stop`` where it is one token, else the end of the text."""
    if stop:
        ids = tokenizer(stop, add_special_tokens=False)["input_ids"]
        if len(ids) == 1:
            return ids[0]
    return getattr(tokenizer, "eos_token_id", None)

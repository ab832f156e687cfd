"""Sampling from a language model: a fast path with a key-value cache, and its slow reference.

``generate`` and ``generate_reference`` draw the same tokens from the same generator; tests hold
them together. Both take our models and any ``AutoModelForCausalLM``; ``generate_seq2seq`` is for
encoder-decoders. All three sample with the model in evaluation mode and without gradients, and
leave it in the mode in which it came.
Simplified away: beam search, repetition penalties, streaming.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import wraps

import torch
from torch import Tensor, nn

from course_lib.ops import long_ids
from course_lib.runtime import evaluation_mode

EndTokens = int | Sequence[int] | None
"""The token that ends a row, several such (Llama 3, Qwen), or none."""


def _samples(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run it without gradients, the model in evaluation mode."""

    @wraps(function)
    @torch.no_grad()
    def run(model: nn.Module, *args, **kwargs) -> Tensor:
        with evaluation_mode(model):
            return function(model, *args, **kwargs)

    return run


def filter_logits(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Set the logits of all but the likeliest tokens to -inf.

    Args:
        logits: (B, V), after the temperature.
        top_k: keep the k likeliest (Fan et al., 2018); tokens tied with the k-th stay too.
        top_p: keep the fewest tokens whose probabilities add up to at least p (Holtzman et al.,
            2020); applied after ``top_k``.

    Returns:
        (B, V).
    """
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if top_p is not None and top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # mass of the likelier tokens
        ordered = ordered.masked_fill(before >= top_p, float("-inf"))
        logits = torch.empty_like(logits).scatter_(-1, order, ordered)
    return logits


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    uniforms: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    step: int = 0,
) -> Tensor:
    """One token a row, by inverting the cumulative distribution (much faster than multinomial).

    Args:
        logits: (B, V); -inf for tokens that must not come.
        temperature: divides the logits; 0 takes the likeliest token.
        uniforms: (B,) numbers in [0, 1), one a row; not needed at temperature 0.
        rows, step: which rows (B,) and which new token these are, for the error alone.

    Returns:
        (B,) token ids.

    Raises:
        FloatingPointError: a row with NaN or inf, or with nothing but -inf.
    """
    token = logits.argmax(-1) if temperature == 0 else None
    # The largest logit is NaN where any is. Either way it costs no further pass over the logits.
    best = logits.amax(-1) if token is None else logits.gather(-1, token[:, None])[:, 0]  # (B,)
    if not best.isfinite().all():
        row = int((~best.isfinite()).nonzero()[0])
        raise FloatingPointError(
            f"The logits of new token {step} of row {row if rows is None else int(rows[row])} have "
            f"{float(best[row])} as their largest: no token can be drawn. Look for weights that "
            "are not finite, and compute in float32 or bfloat16 where float16 overflows."
        )
    if token is not None:
        return token
    # At most 0: dividing by a small temperature gives -inf at worst, never inf - inf.
    logits = logits.float() - best.float()[:, None]
    logits = filter_logits(logits / temperature, top_k, top_p)
    cumulative = logits.softmax(-1).cumsum(-1)  # (B, V)
    total = cumulative[:, -1:]  # (B, 1): rounding leaves it near 1, not at it
    below = torch.nextafter(total, torch.zeros_like(total))
    threshold = torch.minimum(uniforms[:, None] * total, below)
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)


def _block_size(model: nn.Module) -> float:
    """The longest sequence the model takes; infinite where its positions have no end (ALiBi)."""
    for name in ("block_size", "max_position_embeddings"):
        if getattr(model.config, name, None):
            return getattr(model.config, name)
    return math.inf


def check_prompts(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, max_new_tokens: int
) -> tuple[Tensor, Tensor]:
    """The prompts padded on the left, and their mask.

    Prompts padded on the right are shifted: the last prompt token must stand at the end.

    Returns:
        input_ids, attention_mask: (B, T), the mask of dtype int64.

    Raises:
        ValueError: an empty prompt, a prompt longer than the context leaves room for, ids that are
            not whole numbers or outside the vocabulary, a mask of another shape or with holes.

    Example: the first prompt moves to the right.
        >>> check_prompts(model, torch.tensor([[5, 6, 0], [7, 8, 9]]),
        ...               torch.tensor([[1, 1, 0], [1, 1, 1]]), max_new_tokens=4)
        (tensor([[0, 5, 6], [7, 8, 9]]), tensor([[0, 1, 1], [1, 1, 1]]))
    """
    input_ids, mask = _check_ids(model, input_ids, attention_mask)
    mask = _check_mask(mask)
    room, longest = _block_size(model) - max_new_tokens, int(mask.sum(1).max())
    if longest > room:
        raise ValueError(
            f"The longest prompt has {longest} tokens and {max_new_tokens} are to follow: "
            f"{longest - room} too many for the context of {_block_size(model)}. Shorten the "
            "prompt or ask for fewer new tokens."
        )
    if not mask[:, -1].all():  # padded on the right: a stable sort puts the padding first
        order = mask.int().argsort(dim=1, stable=True)
        input_ids, mask = input_ids.gather(1, order), mask.gather(1, order)
    return input_ids, mask.long()


def _check_ids(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Ids (B, T) of dtype int64 and their mask of dtype bool, if they are ids of this model."""
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise ValueError(
            f"input_ids must be of shape (B, T) with at least one token, got "
            f"{tuple(input_ids.shape)}: an empty prompt has nothing to continue. Start from the "
            "end-of-text token instead."
        )
    input_ids = long_ids(input_ids, "input_ids")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, input_ids "
            f"{tuple(input_ids.shape)}: give one mask entry for each token."
        )
    low, high = (int(x) for x in input_ids.aminmax())
    if low < 0 or high >= model.config.vocab_size:
        raise ValueError(
            f"input_ids span {low}..{high}, the vocabulary 0..{model.config.vocab_size - 1}: was "
            "the text tokenised with this model's tokenizer?"
        )
    return input_ids, mask.bool()


def _check_mask(mask: Tensor) -> Tensor:
    """The mask (B, T), if every row is one run of kept tokens."""
    starts = mask[:, :1].int().squeeze(1) + (mask[:, 1:] & ~mask[:, :-1]).sum(1)  # (B,) runs
    if (starts == 1).all():
        return mask
    row = int((starts != 1).nonzero()[0])
    if starts[row] == 0:
        raise ValueError(
            f"Prompt {row} is empty: its attention_mask is all 0. Start from the end-of-text "
            "token instead."
        )
    raise ValueError(
        f"attention_mask of prompt {row} has a hole: a prompt must be one run of tokens. Pad at "
        "the ends only."
    )


def end_ids(eos_token_id: EndTokens) -> tuple[int, ...]:
    """The tokens that end a row, in the order given.

    Example:
        >>> end_ids(None), end_ids(2), end_ids([128001, 128009])
        ((), (2,), (128001, 128009))
    """
    if eos_token_id is None:
        return ()
    try:
        return (operator.index(eos_token_id),)
    except TypeError:
        return tuple(operator.index(token) for token in eos_token_id)


def _check_settings(
    model, max_new_tokens, temperature, top_k, top_p, eos_token_id, pad_token_id
) -> tuple[tuple[int, ...], int | None]:
    """The tokens that end a row, and what is written behind them."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature must be finite and not negative, got {temperature}; 0 is greedy."
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}; None keeps every token.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}; None keeps every token.")
    last = model.config.vocab_size - 1
    ends, pads = end_ids(eos_token_id), end_ids(pad_token_id)
    for name, tokens in (("eos_token_id", ends), ("pad_token_id", pads)):
        for token in tokens:
            if not 0 <= token <= last:
                raise ValueError(f"{name}={token} is not a token: the vocabulary is 0..{last}.")
    return ends, (*pads, *ends, None)[0]


def _ends(token: Tensor, ends: tuple[int, ...]) -> Tensor:
    """(B,): whether each token is one that ends a row."""
    return torch.stack([token == end for end in ends]).any(0)


def _uniforms(rows: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """(rows,) numbers in [0, 1) from the generator, on the model's device."""
    source = generator.device if generator is not None else device
    return torch.rand(rows, generator=generator, device=source).to(device)


@_samples
def generate(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: EndTokens = None,
    pad_token_id: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue prompts token by token, keeping keys and values of what was read.

    Args:
        model: follows transformers' calling convention.
        input_ids: (B, T) prompts, padded at either end.
        attention_mask: (B, T), 1 = keep; None = no padding.
        max_new_tokens: how many tokens at most; fewer when every row has ended.
        temperature: divides the logits; 0 is greedy.
        top_k, top_p: see ``filter_logits``.
        eos_token_id: ends a row, one token or several; it is kept, and ``pad_token_id`` follows.
        pad_token_id: the first of ``eos_token_id`` when None.
        generator: draws one number a row and step, also for rows that have ended.

    Returns:
        (B, T + new): the prompts, padded on the left, and their continuations.

    Raises:
        ValueError: see ``check_prompts``; settings out of range.
        FloatingPointError: logits that are not finite.
    """
    ends, pad = _check_settings(model, max_new_tokens, temperature, top_k, top_p, eos_token_id,
                                pad_token_id)  # fmt: skip
    ids, mask = check_prompts(model, input_ids, attention_mask, max_new_tokens)
    B, T = ids.shape
    padded = not bool(mask.all())
    out = ids.new_empty(B, T + max_new_tokens)
    out[:, :T] = ids
    full_mask = torch.cat([mask, mask.new_ones(B, max_new_tokens)], dim=1)
    positions = (full_mask.cumsum(1) - 1).clamp(min=0)  # (B, T + max_new_tokens)
    cache = model.new_cache(T + max_new_tokens) if hasattr(model, "new_cache") else None
    rows = torch.arange(B, device=ids.device)  # the rows that are still being written
    step_ids, start = ids, 0
    for end in range(T, T + max_new_tokens):
        result = model(
            step_ids,
            attention_mask=full_mask[rows, :end] if padded else None,
            position_ids=positions[rows, start:end] if padded else positions[:1, start:end],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = result.past_key_values
        uniforms = None if temperature == 0 else _uniforms(B, generator, ids.device)[rows]
        token = sample(result.logits[:, -1], temperature, top_k, top_p, uniforms,
                       rows=rows, step=end - T)  # (rows,)  # fmt: skip
        out[rows, end] = token
        step_ids, start = token[:, None], end
        if ends:
            rows, step_ids, cache = _drop_ended(rows, step_ids, cache, ends, out, end, pad)
            if len(rows) == 0:
                return out[:, : end + 1]
    return out


def _drop_ended(rows, step_ids, cache, ends: tuple[int, ...], out: Tensor, end: int, pad: int):
    """Stop computing rows that have ended; what is left of them is padding."""
    going = ~_ends(step_ids[:, 0], ends)
    if going.all():
        return rows, step_ids, cache
    out[rows[~going], end + 1 :] = pad
    keep = going.nonzero().squeeze(1)
    if len(keep) and hasattr(cache, "select"):
        cache.select(keep)
    elif len(keep):
        cache.batch_select_indices(keep)  # transformers' caches
    return rows[keep], step_ids[keep], cache


@_samples
def generate_reference(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: EndTokens = None,
    pad_token_id: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``generate`` without a cache: reads the whole text again for every token. Slow and plain."""
    ends, pad = _check_settings(model, max_new_tokens, temperature, top_k, top_p, eos_token_id,
                                pad_token_id)  # fmt: skip
    ids, mask = check_prompts(model, input_ids, attention_mask, max_new_tokens)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for step in range(max_new_tokens):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        uniforms = None if temperature == 0 else _uniforms(len(ids), generator, ids.device)
        token = sample(logits, temperature, top_k, top_p, uniforms, step=step)
        if ends:
            token = token.masked_fill(ended, pad)
            ended |= _ends(token, ends)
        ids = torch.cat([ids, token[:, None]], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
        if ended.all():
            break
    return ids


@_samples
def generate_seq2seq(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: EndTokens = None,
    pad_token_id: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Write a target for each source. The encoder reads the source once.

    Args:
        model: one of our encoder-decoders, or an ``AutoModelForSeq2SeqLM``.
        input_ids, attention_mask: (B, S) sources; the rest as in ``generate``.

    Returns:
        (B, 1 + new): the model's start token and the target.

    Raises:
        ValueError: settings out of range, more tokens than the decoder has positions for, sources
            that are empty or no ids of the model.
        FloatingPointError: logits that are not finite.
    """
    ends, pad = _check_settings(model, max_new_tokens, temperature, top_k, top_p, eos_token_id,
                                pad_token_id)  # fmt: skip
    input_ids, _ = _check_ids(model, input_ids, attention_mask)
    if max_new_tokens > _block_size(model):
        raise ValueError(
            f"max_new_tokens={max_new_tokens} is more than the decoder's context of "
            f"{_block_size(model)}: ask for fewer."
        )
    config = model.config
    ours = hasattr(config, "start_token_id")
    start = config.start_token_id if ours else config.decoder_start_token_id
    out = input_ids.new_full((len(input_ids), 1), start)
    ended = torch.zeros(len(out), dtype=torch.bool, device=out.device)
    source = {"input_ids": input_ids}
    cache = None
    for step in range(max_new_tokens):
        result = model(
            **source, attention_mask=attention_mask, decoder_input_ids=out[:, -1:],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        source = {"encoder_outputs": (result.encoder_last_hidden_state,)}
        cache = result.past_key_values
        uniforms = None if temperature == 0 else _uniforms(len(out), generator, out.device)
        token = sample(result.logits[:, -1], temperature, top_k, top_p, uniforms, step=step)
        if ends:
            token = token.masked_fill(ended, pad)
            ended |= _ends(token, ends)
        out = torch.cat([out, token[:, None]], dim=1)
        if ended.all():
            break
    return out

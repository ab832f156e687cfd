"""The parts that models are assembled from. They take plain arguments, never a config.

Shapes: B sequences, T new tokens, S tokens that can be attended to (S = T without a cache), H heads
of width D, C = H · D channels. Masks are True = keep. ``added`` is what is added to the scores of
attention: 0 or a preference, and -inf where a mask hides; ``bias`` is always a linear layer's.
Simplified away: dropout (the course's models are too small and too briefly trained to need it).
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

gelu_tanh = partial(F.gelu, approximate="tanh")
"""The approximation that GPT-2, BLOOM and T5 v1.1 were trained with; BERT and BART have GELU."""

RMSNorm = nn.RMSNorm
"""x / rms(x) · weight over the channels (Zhang and Sennrich, 2019, eq. 4)."""


def rotary_table(length: int, head_width: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (Su et al., 2021, eq. 15), both (length, D).

    Position m turns the pair of channels (i, i + D/2) by the angle m · theta^(-2i/D), so that the
    product of a query at m and a key at n depends on m - n alone. The first half of the sines has
    a minus, see ``rotate``. An odd head width, whose channels do not pair up, is a ValueError.
    """
    if head_width % 2:
        raise ValueError(f"Rotary positions need an even head width, got {head_width}.")
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
    angles = torch.arange(length, dtype=torch.float32)[:, None] * (1.0 / theta**exponents)
    cos, sin = angles.cos(), angles.sin()  # (length, D/2)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channel pairs of x, (B, H, T, D): (a, b) becomes (a cos - b sin, b cos + a sin).

    ``roll`` by half the width puts each channel's partner in its place. cos, sin: rows of
    ``rotary_table``, (T, D) or (B, 1, T, D).
    """
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def alibi_slopes(n_head: int) -> Tensor:
    """How much each head dislikes distance, (H,) (Press et al., 2022, section 3): the powers of
    2^(-8/H), head h from 1 on. Where H is no power of two, the further heads take every second
    slope of twice as many heads.
    """
    whole = 2 ** int(math.log2(n_head))
    slopes = [2 ** (-8 * h / whole) for h in range(1, whole + 1)]
    slopes += [2 ** (-4 * h / whole) for h in range(1, 2 * (n_head - whole), 2)]
    return torch.tensor(slopes)


class RelativePositions(nn.Module):
    """What T5 learns to add for each head and each bucket of distances (Raffel et al., 2020, 2.1).
    Distances are counted in columns: padding at either end changes none between kept tokens.

    Half of the buckets hold one distance each, the others ranges that grow logarithmically up to
    ``max_distance``. A bidirectional table keeps half of all buckets for the keys that follow.
    """

    def __init__(self, n_bucket: int, max_distance: int, n_head: int, bidirectional: bool):
        super().__init__()
        self.max_distance, self.bidirectional = max_distance, bidirectional
        self.bias = nn.Embedding(n_bucket, n_head)

    def bucket(self, offset: Tensor) -> Tensor:
        """The bucket of each offset, key position - query position. Any shape, int64."""
        n_bucket, first, distance = self.bias.num_embeddings, 0, (-offset).clamp(min=0)
        if self.bidirectional:
            n_bucket //= 2
            first, distance = (offset > 0) * n_bucket, offset.abs()
        exact = n_bucket // 2
        growth = torch.log(distance.clamp(min=1) / exact) / math.log(self.max_distance / exact)
        far = (exact + (growth * (n_bucket - exact)).long()).clamp(max=n_bucket - 1)
        return first + torch.where(distance < exact, distance, far)

    def forward(self, T: int, S: int) -> Tensor:
        """What the last T of S tokens add to the scores of all S: (1, H, T, S)."""
        places = torch.arange(S, device=self.bias.weight.device)
        offset = places - places[S - T :, None]  # (T, S)
        return self.bias(self.bucket(offset)).permute(2, 0, 1)[None]


class KVCache:
    """Keys and values of the tokens a decoder has read, in room made beforehand.

    ``length`` tokens are stored in each layer's (B, H_kv, capacity, D) tensors; the room doubles
    when it is used up. With ``cross``, ``source`` is the cache of a source, which is read once.
    """

    def __init__(self, n_layer: int, capacity: int = 0, cross: bool = False):
        self.length, self.capacity = 0, capacity
        self.source = KVCache(n_layer) if cross else None
        self._stores: list[list[Tensor]] = [[] for _ in range(n_layer)]  # keys and values

    def append(self, layer: int, k: Tensor, v: Tensor) -> list[Tensor]:
        """Store T new keys and values, (B, H_kv, T, D), and return those of all length + T."""
        end, old = self.length + k.shape[2], self._stores[layer]
        if not old or end > old[0].shape[2]:
            room = max(self.capacity, 2 * end if old else end) - self.length
            self._stores[layer] = [
                F.pad(x[:, :, : self.length], (0, 0, 0, room)) for x in old or (k, v)
            ]
        for store, x in zip(self._stores[layer], (k, v), strict=True):
            store[:, :, self.length : end] = x
        return self.read(layer, end)

    def read(self, layer: int, end: int) -> list[Tensor]:
        """The layer's first ``end`` keys and values: (B, H_kv, end, D)."""
        return [store[:, :, :end] for store in self._stores[layer]]

    def advance(self, tokens: int) -> None:
        """Count ``tokens`` as read, once every layer has appended them."""
        self.length += tokens

    def select(self, rows: Tensor) -> None:
        """Keep only the given rows of the batch. rows: (B',) indices."""
        self._stores = [[x[rows] for x in stores] for stores in self._stores]
        if self.source is not None:
            self.source.select(rows)


def causal_mask(T: int, S: int, device: torch.device | None = None) -> Tensor:
    """True where query t may see key s, (T, S): t is the (S - T + t)-th token, so s <= S - T + t.

    Example: two new tokens after one in the cache.
        >>> causal_mask(2, 3).int().tolist()
        [[1, 1, 0], [1, 1, 1]]
    """
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as something to add to scores: 0 where it keeps, -inf where it hides."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))


def additive_causal_mask(
    attention_mask: Tensor | None, T: int, past: int, like: Tensor
) -> Tensor:
    """(B or 1, 1, T, S) that hides padding and later tokens from T new ones after ``past`` cached.

    Args:
        attention_mask: (B, past + T), 1 = keep; None = no padding.
        like: a tensor of the wanted dtype and device.
    """
    mask = causal_mask(T, past + T, like.device)[None, None]  # (1, 1, T, S)
    if attention_mask is not None:
        mask = mask & attention_mask.bool()[:, None, None]  # (B, 1, T, S)
        # A padded query may see nothing, and its softmax would be 0/0: let it see itself.
        mask[..., past:].diagonal(dim1=-2, dim2=-1).fill_(True)
    return additive_mask(mask, like.dtype)


def additive_document_mask(
    position_ids: Tensor, added: Tensor | None, like: Tensor
) -> Tensor | None:
    """``added`` that hides the other documents of packed rows too, transformers' way: a document
    begins wherever the positions do not count up by one.

    Args:
        position_ids: (B or 1, T), e.g. [[0, 1, 2, 0, 1]] for documents of three and two tokens.
        added: (B or 1, H or 1, T, T), or None for the plain causal mask; returned as it is where
            every row is one document.
    """
    starts = position_ids.diff(dim=1) != 1  # (B, T-1)
    if not starts.any():
        return added
    document = F.pad(starts.cumsum(1), (1, 0))  # (B, T): 0 0 0 1 1
    other = document[:, None, :, None] != document[:, None, None]  # (B, 1, T, T)
    if added is None:
        added = additive_causal_mask(None, position_ids.shape[1], 0, like)
    return added.masked_fill(other, float("-inf"))


def additive_padding_mask(attention_mask: Tensor | None, like: Tensor) -> Tensor | None:
    """(B, 1, 1, S) that hides padding from everyone; None where there is none. A row of which
    nothing is kept is a ValueError.
    """
    if attention_mask is None or attention_mask.all():
        return None
    if not attention_mask.any(1).all():
        row = int((~attention_mask.any(1)).nonzero()[0])
        raise ValueError(f"attention_mask of row {row} is all 0: there is nothing to look at.")
    return additive_mask(attention_mask.bool()[:, None, None], like.dtype)


def attend(q, k, v, added=None, causal: bool = True, scale: float | None = None) -> Tensor:
    """softmax(q kᵀ · scale + added) v, (B, H, T, D) (Vaswani et al., 2017, eq. 1).

    Args:
        q: (B, H, T, D).
        k, v: (B, H_kv, S, D); each key head serves H / H_kv query heads.
        added: (B or 1, H or 1, T, S), -inf hides a key; the causal mask, where wanted, is in it.
        causal: where nothing is added, apply the plain causal mask, for which T must be S or 1.
        scale: of the scores, 1 / √D when None.
    """
    B, H, T, D = q.shape
    if T > 1 or q.device.type != "cpu" or torch.is_grad_enabled():
        causal = causal and added is None and T > 1
        return F.scaled_dot_product_attention(
            q, k, v, added, is_causal=causal, scale=scale, enable_gqa=k.shape[1] != H
        )
    # One query a head: on a CPU two plain products are faster than the fused kernel.
    grouped = q.view(B, -1, H // k.shape[1], D)  # (B, H_kv, H/H_kv, D)
    scores = (grouped * (scale or D**-0.5)) @ k.transpose(2, 3)  # (B, H_kv, H/H_kv, S)
    if added is not None:
        scores = scores.view(B, H, 1, -1) + added
    return (scores.softmax(-1).view(B, k.shape[1], -1, k.shape[2]) @ v).view(B, H, 1, D)


class Attention(nn.Module):
    """Multi-head attention, to itself or to a source.

    With fewer ``n_kv_head`` than ``n_head``, query heads share key-value heads (Ainslie et al.,
    2023). ``head_width`` is D, ``n_embd // n_head`` when None; ``causal`` and ``scale`` are those
    of ``attend``.
    """

    def __init__(
        self, n_embd, n_head, n_kv_head=None, head_width=None, bias=False, causal=True, scale=None
    ):
        super().__init__()
        self.n_head, self.n_kv_head = n_head, n_kv_head or n_head
        self.head_width = head_width or n_embd // n_head
        self.causal, self.scale = causal, scale
        self.q = nn.Linear(n_embd, self.n_head * self.head_width, bias)
        self.k = nn.Linear(n_embd, self.n_kv_head * self.head_width, bias)
        self.v = nn.Linear(n_embd, self.n_kv_head * self.head_width, bias)
        self.out = nn.Linear(self.n_head * self.head_width, n_embd, bias)

    def split(self, x: Tensor, heads: int) -> Tensor:
        """(B, T, heads · D) -> (B, heads, T, D)."""
        B, T, _ = x.shape
        return x.view(B, T, heads, self.head_width).transpose(1, 2)

    def forward(self, x: Tensor, rotary=None, added=None, cache=None, source=None) -> Tensor:
        """x: (B, T, C) -> (B, T, C).

        Args:
            rotary: cos and sin of the new tokens' positions. added: see ``attend``.
            cache: a KVCache and this layer's number in it.
            source: (B, S, C), what to attend to instead of x; a cache that holds it is read.
        """
        q = self.split(self.q(x), self.n_head)  # (B, H, T, D)
        store, layer = (None, 0) if cache is None else cache
        if source is not None and store is not None and store.length:
            k, v = store.read(layer, store.length)
        else:
            seen = x if source is None else source
            k = self.split(self.k(seen), self.n_kv_head)  # (B, H_kv, T or S, D)
            v = self.split(self.v(seen), self.n_kv_head)
            if rotary is not None:
                q, k = rotate(q, *rotary), rotate(k, *rotary)
            if store is not None:
                k, v = store.append(layer, k, v)  # (B, H_kv, S, D)
        heads = attend(q, k, v, added, self.causal, self.scale)  # (B, H, T, D)
        return self.out(heads.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """down(activation(up(x))) (Vaswani et al., 2017, eq. 2), or, gated,
    down(activation(gate(x)) · up(x)) (Shazeer, 2020, eq. 6).
    """

    def __init__(self, n_embd: int, n_inner: int, activation: Callable, bias=True, gated=False):
        super().__init__()
        self.activation = activation
        self.gate = nn.Linear(n_embd, n_inner, bias) if gated else None
        self.up = nn.Linear(n_embd, n_inner, bias)
        self.down = nn.Linear(n_inner, n_embd, bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) -> (B, T, C)."""
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


GELU = partial(FeedForward, activation=F.gelu)
GELUTanh = partial(FeedForward, activation=gelu_tanh)
SwiGLU = partial(FeedForward, activation=F.silu, bias=False, gated=True)
GEGLUTanh = partial(FeedForward, activation=gelu_tanh, bias=False, gated=True)


def clamp_half(x: Tensor) -> Tensor:
    """x, in fp16 without infinities, as transformers clamps T5: beyond 65,504 a sum of two finite
    numbers is inf there, and the next norm makes it nan. Other precisions pass unchanged.
    """
    if x.dtype != torch.float16:
        return x
    most = torch.finfo(x.dtype).max
    most = torch.where(x.isinf().any(), most - 1000, most)
    return x.clamp(min=-most, max=most)


class Block(nn.Module):
    """Attention, cross-attention where there is one, feed-forward; a residual and a norm for each.

    ``norm`` makes a fresh norm, the others are modules. ``pre_norm``: x + sublayer(norm(x)), as in
    GPT-2 and after; else norm(x + sublayer(x)), as in the first Transformer (Xiong et al., 2020).
    ``clamp``: keep the sums finite in fp16, see ``clamp_half``.
    """

    def __init__(self, norm, attention, feed_forward, cross_attention=None, pre_norm: bool = True,
                 clamp: bool = False):  # fmt: skip
        super().__init__()
        self.pre_norm, self.clamp = pre_norm, clamp
        self.attention, self.feed_forward = attention, feed_forward
        self.cross_attention = cross_attention
        self.attention_norm, self.feed_forward_norm = norm(), norm()
        self.cross_attention_norm = None if cross_attention is None else norm()

    def add(self, x: Tensor, norm: nn.Module, sublayer: nn.Module, *args) -> Tensor:
        """x: (B, T, C) -> (B, T, C)."""
        x = x + sublayer(norm(x) if self.pre_norm else x, *args)
        x = clamp_half(x) if self.clamp else x
        return x if self.pre_norm else norm(x)

    def forward(self, x: Tensor, rotary=None, added=None, cache=None, cross=()) -> Tensor:
        """x: (B, T, C) -> (B, T, C). cross: added, cache and source of the cross-attention; the
        others as in ``Attention.forward``.
        """
        x = self.add(x, self.attention_norm, self.attention, rotary, added, cache)
        if self.cross_attention is not None:
            x = self.add(x, self.cross_attention_norm, self.cross_attention, None, *cross)
        return self.add(x, self.feed_forward_norm, self.feed_forward)


class Blocks(nn.ModuleList):
    """Blocks, one after the other."""

    def forward(
        self, x: Tensor, rotary=None, added=None, cache=None, source=None, source_added=None
    ) -> Tensor:
        """x: (B, T, C) -> (B, T, C), as in ``Attention.forward``; a KVCache then holds x too."""
        own = read = None
        for layer, block in enumerate(self):
            if cache is not None:
                own, read = (cache, layer), (cache.source, layer)
            x = block(x, rotary, added, own, (source_added, read, source))
        if cache is not None:
            cache.advance(x.shape[1])
            if source is not None and cache.source.length == 0:
                cache.source.advance(source.shape[1])
        return x

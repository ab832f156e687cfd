"""The parts that models are assembled from. They take plain arguments, never a config.

Shapes: B sequences, T new tokens, S tokens that can be attended to (S = T without a cache), H heads
of width D, C = H · D channels. Masks are True = keep.
Simplified away: dropout (the course's models are too small and too briefly trained to need it).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the channels (Zhang and Sennrich, 2019, eq. 4)."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) -> (B, T, C)."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotary_table(length: int, head_width: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (Su et al., 2021, eq. 15).

    Position m turns the pair of channels (i, i + D/2) by the angle m · theta^(-2i/D), so that the
    product of a query at m and a key at n depends on m - n alone.

    Returns:
        cos, sin: both (length, D). The first half of ``sin`` has a minus, see ``rotate``.

    Raises:
        ValueError: an odd head width, whose channels do not pair up.
    """
    if head_width % 2:
        raise ValueError(f"Rotary positions need an even head width, got {head_width}.")
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
    angles = torch.arange(length, dtype=torch.float32)[:, None] * (1.0 / theta**exponents)
    cos, sin = angles.cos(), angles.sin()  # (length, D/2)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channel pairs of x: (a, b) becomes (a cos - b sin, b cos + a sin).

    ``roll`` by half the width puts each channel's partner in its place; the minus of the first half
    stands in ``sin``.

    Args:
        x: (B, H, T, D).
        cos, sin: (B or 1, 1, T, D), rows of ``rotary_table``.
    """
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class KVCache:
    """Keys and values of the tokens a decoder has read, in room made beforehand.

    ``length`` tokens are stored in each layer's (B, H_kv, capacity, D) tensors; the room doubles
    when it is used up.
    """

    def __init__(self, n_layer: int, capacity: int = 0):
        self.length = 0
        self.capacity = capacity
        self._keys: list[Tensor | None] = [None] * n_layer
        self._values: list[Tensor | None] = [None] * n_layer

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store T new keys and values behind the ``length`` old ones.

        Args:
            k, v: (B, H_kv, T, D).

        Returns:
            All keys and values of the layer: (B, H_kv, length + T, D).
        """
        end = self.length + k.shape[2]
        if self._keys[layer] is None or end > self._keys[layer].shape[2]:
            self._grow(layer, k, end)
        self._keys[layer][:, :, self.length : end] = k
        self._values[layer][:, :, self.length : end] = v
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def _grow(self, layer: int, like: Tensor, end: int) -> None:
        B, H, _, D = like.shape
        room = max(self.capacity, end if self._keys[layer] is None else 2 * end)
        for store in (self._keys, self._values):
            old, store[layer] = store[layer], like.new_empty(B, H, room, D)
            if old is not None:
                store[layer][:, :, : self.length] = old[:, :, : self.length]

    def advance(self, tokens: int) -> None:
        """Count ``tokens`` as read, once every layer has appended them."""
        self.length += tokens

    def select(self, rows: Tensor) -> None:
        """Keep only the given rows of the batch. rows: (B',) indices."""
        self._keys = [k if k is None else k[rows] for k in self._keys]
        self._values = [v if v is None else v[rows] for v in self._values]


def causal_mask(T: int, S: int, device: torch.device | None = None) -> Tensor:
    """True where query t may see key s: t is the (S - T + t)-th token, so s <= S - T + t.

    Returns:
        (T, S) bool.

    Example: two new tokens after one in the cache.
        >>> causal_mask(2, 3).int().tolist()
        [[1, 1, 0], [1, 1, 1]]
    """
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores: 0 where the mask keeps, -inf where it hides."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
        ~mask, float("-inf")
    )


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D + bias) v (Vaswani et al., 2017, eq. 1).

    Args:
        q: (B, H, T, D).
        k, v: (B, H_kv, S, D); each key head serves H / H_kv query heads.
        bias: (B or 1, H or 1, T, S), -inf hides a key; None = the plain causal mask, for which T
            must be S or 1.

    Returns:
        (B, H, T, D).
    """
    B, H, T, D = q.shape
    if T > 1 or q.device.type != "cpu" or torch.is_grad_enabled():
        return F.scaled_dot_product_attention(
            q, k, v, bias, is_causal=bias is None and T > 1, enable_gqa=k.shape[1] != H
        )
    # One query a head: on a CPU two plain products are faster than the fused kernel.
    grouped = q.view(B, -1, H // k.shape[1], D)  # (B, H_kv, H/H_kv, D)
    scores = (grouped * D**-0.5) @ k.transpose(2, 3)  # (B, H_kv, H/H_kv, S)
    if bias is not None:
        scores = scores.view(B, H, 1, -1) + bias
    return (scores.softmax(-1).view(B, k.shape[1], -1, k.shape[2]) @ v).view(B, H, 1, D)


class Attention(nn.Module):
    """Multi-head attention with rotary positions and grouped key-value heads.

    With ``n_kv_head < n_head`` several query heads share a key-value head (Ainslie et al., 2023).
    """

    def __init__(self, n_embd: int, n_head: int, n_kv_head: int):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_width = n_head, n_kv_head, n_embd // n_head
        self.q = nn.Linear(n_embd, n_head * self.head_width, bias=False)
        self.k = nn.Linear(n_embd, n_kv_head * self.head_width, bias=False)
        self.v = nn.Linear(n_embd, n_kv_head * self.head_width, bias=False)
        self.out = nn.Linear(n_head * self.head_width, n_embd, bias=False)

    def split(self, x: Tensor, heads: int) -> Tensor:
        """(B, T, heads · D) -> (B, heads, T, D)."""
        B, T, _ = x.shape
        return x.view(B, T, heads, self.head_width).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        bias: Tensor | None = None,
        cache: tuple[KVCache, int] | None = None,
    ) -> Tensor:
        """
        Args:
            x: (B, T, C).
            rotary: cos and sin of the new tokens' positions, (B or 1, 1, T, D).
            bias: see ``attend``; None = plain causal mask.
            cache: the cache and this layer's number in it.

        Returns:
            (B, T, C).
        """
        B, T, _ = x.shape
        q = rotate(self.split(self.q(x), self.n_head), *rotary)  # (B, H, T, D)
        k = rotate(self.split(self.k(x), self.n_kv_head), *rotary)  # (B, H_kv, T, D)
        v = self.split(self.v(x), self.n_kv_head)
        if cache is not None:
            store, layer = cache
            k, v = store.append(layer, k, v)  # (B, H_kv, S, D)
        heads = attend(q, k, v, bias)  # (B, H, T, D)
        return self.out(heads.transpose(1, 2).reshape(B, T, self.n_head * self.head_width))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer, 2020, eq. 6)."""

    def __init__(self, n_embd: int, n_inner: int):
        super().__init__()
        self.gate = nn.Linear(n_embd, n_inner, bias=False)
        self.up = nn.Linear(n_embd, n_inner, bias=False)
        self.down = nn.Linear(n_inner, n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) -> (B, T, C)."""
        return self.down(F.silu(self.gate(x)) * self.up(x))

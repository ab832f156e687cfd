"""Layers: rotary distances, the cache's room, masks by hand, and fast against plain attention."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.models.layers import (
    Attention,
    KVCache,
    RMSNorm,
    SwiGLU,
    additive_mask,
    attend,
    causal_mask,
    rotary_table,
    rotate,
)

seeds = st.integers(0, 2**16)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_attention(q, k, v, keep):
    """One query at a time, in float64; keep: (B, H, T, S), the others as in ``attend``"""
    B, H, T, D = q.shape
    out = torch.zeros(B, H, T, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            kv = h // (H // k.shape[1])  # neighbouring query heads share a key head
            for t in range(T):
                seen = keep[b, h, t].nonzero().flatten()
                keys, values = k[b, kv, seen].double(), v[b, kv, seen].double()
                weights = (keys @ q[b, h, t].double() / math.sqrt(D)).softmax(0)
                out[b, h, t] = weights @ values
    return out


def test_rms_norm_by_hand():
    """rms of (3, 4) is √((9 + 16)/2) = 3.5355; weights 1 and 10 give 0.8485 and 11.3137.

    A norm that subtracts the mean would give -1 and 10.
    """
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 10.0])
    out = norm(torch.tensor([[[3.0, 4.0]]]))
    torch.testing.assert_close(out, torch.tensor([[[0.848528, 11.313708]]]))


def test_the_epsilon_of_rms_norm_stands_under_the_root():
    """x = (1, 1), eps = 3: 1/√(1 + 3) = 0.5. Outside the root it would be 1/(1 + 3) = 0.25."""
    assert RMSNorm(2, eps=3.0)(torch.ones(1, 1, 2)).tolist() == [[[0.5, 0.5]]]


def test_rotary_angles_by_hand():
    """D = 4, theta = 100: the two pairs turn by m · 1 and m · 100^(-1/2) = m/10.

    Position 0 does not turn. At position 3, (1, 0, 0, 0) becomes (cos 3, 0, sin 3, 0), for channel
    0 pairs with channel 2, and (0, 1, 0, 0) becomes (0, cos 0.3, 0, sin 0.3).
    """
    cos, sin = rotary_table(4, 4, theta=100.0)
    x = torch.eye(4)[:2].view(1, 2, 1, 4)  # two heads
    assert torch.equal(rotate(x, cos[:1], sin[:1]), x)
    turned = rotate(x, cos[3:], sin[3:])[0, :, 0]
    expected = torch.tensor([
        [math.cos(3), 0, math.sin(3), 0],
        [0, math.cos(0.3), 0, math.sin(0.3)],
    ])  # fmt: skip
    torch.testing.assert_close(turned, expected)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.sampled_from([2, 4, 6, 10]), st.integers(0, 30), st.integers(0, 30), st.integers(1, 30),
       st.sampled_from([3.0, 10000.0]), seeds)  # fmt: skip
def test_scores_depend_on_the_distance_alone(D, m, n, shift, theta, seed):
    """q at m and k at n score the same as at m + shift and n + shift; and norms stay."""
    cos, sin = rotary_table(61, D, theta)
    q, k = normal(2, 1, 1, 1, D, seed=seed).double()

    def turn(x, position):
        return rotate(x, cos[position].double(), sin[position].double())

    here = (turn(q, m) * turn(k, n)).sum()
    there = (turn(q, m + shift) * turn(k, n + shift)).sum()
    torch.testing.assert_close(here, there, atol=2e-5, rtol=0)
    torch.testing.assert_close(turn(q, m).norm(), q.norm(), atol=1e-5, rtol=0)


def test_scores_do_depend_on_the_distance():
    """D = 2, q = k = (1, 0): the score at distance 2 is cos 2 = -0.416, at distance 0 it is 1."""
    cos, sin = rotary_table(3, 2)
    x = torch.tensor([[[[1.0, 0.0]]]])
    first, third = rotate(x, cos[0], sin[0]), rotate(x, cos[2], sin[2])
    assert (first * first).sum().item() == pytest.approx(1.0)
    assert (first * third).sum().item() == pytest.approx(math.cos(2))


def test_an_odd_head_width_is_refused():
    with pytest.raises(ValueError, match="even head width, got 5"):
        rotary_table(8, 5)


def test_causal_mask_by_hand():
    """Query t of T is token S - T + t: with 2 cached, the first of 3 new sees 3 tokens."""
    assert causal_mask(3, 5).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert causal_mask(2, 2).int().tolist() == [[1, 0], [1, 1]]
    assert causal_mask(1, 4).int().tolist() == [[1, 1, 1, 1]]


def test_a_mask_adds_nothing_or_minus_infinity():
    added = additive_mask(torch.tensor([True, False]), torch.float16)
    assert added.tolist() == [0.0, -math.inf] and added.dtype == torch.float16


def test_attention_by_hand():
    """D = 4, one query (2 log 3, 0, 0, 0), keys e1 and 0: scores 2 log 3 / √4 = log 3 and 0.

    Weights 3/4 and 1/4, values 1 and 5: 2. Without the √D the weights were 9/10 and 1/10: 1.4.
    """
    q = torch.tensor([2 * math.log(3), 0, 0, 0]).view(1, 1, 1, 4)
    k = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]).view(1, 1, 2, 4)
    v = torch.tensor([1.0, 5.0])[:, None].expand(2, 4).view(1, 1, 2, 4)
    for no_grad in (True, False):  # the plain products and the fused kernel
        with torch.set_grad_enabled(not no_grad):
            torch.testing.assert_close(attend(q, k, v), torch.full((1, 1, 1, 4), 2.0))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(B=st.integers(1, 3), kv=st.integers(1, 3), group=st.integers(1, 3), T=st.integers(1, 5),
       past=st.integers(0, 4), D=st.sampled_from([1, 3, 4, 8]), per_head=st.booleans(),
       seed=seeds, grad=st.booleans())  # fmt: skip
def test_attend_equals_one_query_at_a_time(B, kv, group, T, past, D, per_head, seed, grad):
    """With masks of any kind, a mask a head among them; T = 1 goes the fast path without grad."""
    H, S = kv * group, past + T
    q = 2 * normal(B, H, T, D, seed=seed)
    k, v = normal(2, B, kv, S, D, seed=seed + 1)
    g = torch.Generator().manual_seed(seed)
    keep = torch.rand(B, H if per_head else 1, T, S, generator=g) < 0.6
    keep[..., past:].diagonal(dim1=-2, dim2=-1).fill_(True)
    with torch.set_grad_enabled(grad):
        out = attend(q, k, v, additive_mask(keep, q.dtype))
    expected = plain_attention(q, k, v, keep.expand(B, H, T, S))
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(B=st.integers(1, 3), kv=st.integers(1, 3), group=st.integers(1, 3), S=st.integers(1, 9),
       D=st.sampled_from([2, 5, 8]), seed=seeds)  # fmt: skip
def test_a_single_query_takes_the_fast_path_to_the_same_place(B, kv, group, S, D, seed):
    """Without a mask one query sees all S keys, on the plain path and on the fused one."""
    q = 2 * normal(B, kv * group, 1, D, seed=seed)
    k, v = normal(2, B, kv, S, D, seed=seed + 1)
    with torch.no_grad():
        fast = attend(q, k, v)
    fused = attend(q, k, v)
    torch.testing.assert_close(fast, fused, atol=1e-6, rtol=1e-5)
    keep = torch.ones(B, kv * group, 1, S, dtype=torch.bool)
    torch.testing.assert_close(fast.double(), plain_attention(q, k, v, keep), atol=1e-5, rtol=0)


def test_several_queries_without_a_mask_are_causal():
    q, k, v = normal(3, 1, 2, 5, 4)
    keep = causal_mask(5, 5).expand(1, 2, 5, 5)
    torch.testing.assert_close(
        attend(q, k, v).double(), plain_attention(q, k, v, keep), atol=1e-5, rtol=0
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 8), seeds)
def test_the_cache_returns_all_that_was_appended(sizes, capacity, seed):
    """Whatever the room at first and however often it grows, in every layer."""
    cache = KVCache(n_layer=2, capacity=capacity)
    k, v = normal(2, 2, 3, sum(sizes), 4, seed=seed)  # each (B, H_kv, T, D)
    for n in sizes:
        end = cache.length + n
        for layer, sign in ((0, 1), (1, -1)):
            new = slice(cache.length, end)
            keys, values = cache.append(layer, sign * k[:, :, new], sign * v[:, :, new])
            assert torch.equal(keys, sign * k[:, :, :end])
            assert torch.equal(values, sign * v[:, :, :end])
        cache.advance(n)
        assert cache.length == end


def test_room_made_beforehand_is_not_made_again():
    """With capacity 4 the store is the same until the fifth token; then it doubles to 10."""
    cache = KVCache(n_layer=1, capacity=4)
    token = normal(1, 1, 1, 2)
    places = []
    for _ in range(5):
        keys, _ = cache.append(0, token, token)
        places.append((keys.untyped_storage().data_ptr(), keys.untyped_storage().nbytes() // 8))
        cache.advance(1)
    assert len(set(places[:4])) == 1 and places[3][1] == 4
    assert places[4][1] == 10


def test_selecting_rows_of_the_cache():
    """Rows 2 and 0 of three, in that order; a layer that is still empty stays so."""
    cache = KVCache(n_layer=2)
    k, v = normal(2, 3, 1, 2, 2)
    cache.append(0, k, v)
    cache.advance(2)
    cache.select(torch.tensor([2, 0]))
    new_k, new_v = normal(2, 2, 1, 1, 2, seed=1)
    keys, values = cache.append(0, new_k, new_v)
    assert torch.equal(keys, torch.cat([k[[2, 0]], new_k], 2))
    assert torch.equal(values, torch.cat([v[[2, 0]], new_v], 2))
    assert torch.equal(cache.append(1, k, v)[0][:, :, 2:], k)


def test_selecting_rows_of_a_decoders_cache_selects_its_sources_too():
    cache = KVCache(n_layer=1, cross=True)
    k, v = normal(2, 3, 1, 2, 2)
    for store in (cache, cache.source):
        store.append(0, k, v)
        store.advance(2)
    cache.select(torch.tensor([2, 0]))
    for store in (cache, cache.source):
        keys, values = store.read(0, 2)
        assert torch.equal(keys, k[[2, 0]]) and torch.equal(values, v[[2, 0]])


def test_shared_key_heads_equal_full_attention_with_the_heads_repeated():
    """Grouped-query attention is multi-head attention whose neighbouring heads have equal keys."""
    grouped, full = Attention(24, 6, 2), Attention(24, 6, 6)
    full.load_state_dict({
        name: w if name in ("q.weight", "out.weight")
        else w.view(2, 4, 24).repeat_interleave(3, dim=0).reshape(24, 24)
        for name, w in grouped.state_dict().items()
    })  # fmt: skip
    x, rotary = normal(2, 5, 24), rotary_table(5, 4)
    torch.testing.assert_close(grouped(x, rotary), full(x, rotary), atol=1e-6, rtol=1e-5)


def test_swiglu_by_hand():
    """gate 2, up 3, down 10 of x = 1: silu(2) = 2/(1 + e^-2) = 1.76159; · 3 · 10 = 52.8478.

    Gate and up exchanged: 2 · silu(3) · 10 = 57.1544.
    """
    layer = SwiGLU(1, 1)
    for part, weight in ((layer.gate, 2.0), (layer.up, 3.0), (layer.down, 10.0)):
        part.weight.data.fill_(weight)
    assert layer(torch.ones(1, 1, 1)).item() == pytest.approx(52.8478, abs=1e-3)

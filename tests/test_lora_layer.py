"""One linear layer with low-rank updates: by hand, merged, switched, in half precision."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_lib.lora_layer import LoRALinear, LoRASettings, lora_delta, lora_linear, lora_scaling
from course_lib.wrapped_linear import disabled


def layer(W=((1.0,),), A=((1.0,),), B=((0.0,),), bias=None, **settings) -> LoRALinear:
    """With these numbers; alpha is r, so that the scaling is 1 if nothing else is said."""
    W, A, B = (torch.tensor(x) for x in (W, A, B))
    plain = nn.Linear(W.shape[1], W.shape[0], bias is not None)
    with torch.no_grad():
        plain.weight.copy_(W)
        if bias is not None:
            plain.bias.copy_(torch.tensor(bias))
    module = LoRALinear(plain)
    add(module, "default", A, B, **settings)
    return module.eval()


def add(module: LoRALinear, name: str, A, B, **settings) -> None:
    module.add(name, LoRASettings(**{"r": len(A), "lora_alpha": len(A)} | settings))
    with torch.no_grad():
        module.lora_A[name].copy_(torch.as_tensor(A))
        module.lora_B[name].copy_(torch.as_tensor(B))
    module.active = (*module.active, name)


# --- the pure pieces ----------------------------------------------------------------------------


def test_the_scaling():
    """r 4, alpha 8: 2 and, by √r, 4; a layer of rank 4 under alpha 16: 4."""
    assert lora_scaling(4, 8) == 2 and lora_scaling(4, 8, use_rslora=True) == 4
    assert LoRASettings(4, 16).scaling == 4
    assert LoRASettings(2, 3, use_rslora=True).scaling == pytest.approx(3 / math.sqrt(2))


def test_the_update_by_hand():
    """A = [[1, 2, 0]], B = [[1], [-1]], s = 3: s B A = [[3, 6, 0], [-3, -6, 0]]. For x = (1, 1, 1)
    A x = 3, so W x = (1, 1) with W = [[1, 0, 0], [0, 1, 0]] and b = (0, 5) becomes
    (1 + 9, 1 + 5 - 9) = (10, -3)."""
    A, B = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0], [-1.0]])
    assert lora_delta(A, B, 3.0).tolist() == [[3, 6, 0], [-3, -6, 0]]
    W, b, x = torch.eye(2, 3), torch.tensor([0.0, 5.0]), torch.ones(3)
    assert lora_linear(x, W, b, A, B, 3.0).tolist() == [10, -3]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**16),
       st.booleans(), st.booleans())  # fmt: skip
def test_apart_merged_and_by_the_pure_function_are_one(n_in, n_out, r, seed, bias, transposed):
    """W x + s B A x = (W + s B A) x, of the module, of the module merged, and of the functions."""
    g = torch.Generator().manual_seed(seed)
    plain = Conv1D(n_out, n_in) if transposed else nn.Linear(n_in, n_out, bias)
    module = LoRALinear(plain.double())
    module.add("a", LoRASettings(r, 3.0), g)
    module.active = ("a",)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(generator=g)
    A, B, s = module.lora_A["a"], module.lora_B["a"], 3.0 / r
    W = module.weight.T if transposed else module.weight
    x = torch.randn(2, 3, n_in, generator=g, dtype=torch.float64)
    want = x @ (W + lora_delta(A, B, s)).T + (0 if module.bias is None else module.bias)
    for found in (module(x), lora_linear(x, W, module.bias, A, B, s)):
        torch.testing.assert_close(found, want, atol=1e-10, rtol=1e-10)
    assert module.merge(["a"]) < 1e-6
    module.eval()
    torch.testing.assert_close(module(x), want, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(module.plain()(x), want, atol=1e-10, rtol=1e-10)


def test_one_vector_and_whole_batches_are_read_alike():
    module = layer([[1.0, 2.0]], [[1.0, 1.0]], [[2.0]])  # (1 + 2, 2 + 2) x
    x = torch.tensor([1.0, 10.0])
    assert module(x).tolist() == [43] and module(x.expand(2, 3, 2)).unique().tolist() == [43]


# --- the start ----------------------------------------------------------------------------------


def test_the_start_changes_nothing_and_learns():
    """A 1, B 0, x 1, dL/dy 1: the output is W x = 1, and dL/dB = A x = 1; dL/dA = B = 0, and W has
    no gradient."""
    module = layer()
    module.weight.requires_grad_(False)
    y = module(torch.ones(1, 1))
    y.sum().backward()
    assert y.item() == 1 and module.weight.grad is None
    assert module.lora_B["default"].grad.item() == 1 and module.lora_A["default"].grad.item() == 0


def test_the_first_weights():
    """A lies within ±1/√in and fills it, from the generator alone; B and the bias are 0. 4,000
    uniform numbers have a deviation of .1/√3 = .0577, give or take .0577/√8000 = .0006."""
    modules = [LoRALinear(nn.Linear(100, 3)) for _ in range(3)]
    for i, module in enumerate(modules):
        module.add("a", LoRASettings(40, 1.0, lora_bias=True),
                   torch.Generator().manual_seed(i // 2))  # fmt: skip
        assert not module.lora_B["a"].any() and not module.lora_bias["a"].any()
        A = module.lora_A["a"]
        assert A.abs().max() <= 0.1 and A.std().item() == pytest.approx(0.0577, abs=0.003)
    first, same, other = (module.lora_A["a"] for module in modules)
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize("r", [0, -1, 1.5, True, "8"])
def test_a_rank_that_is_none_is_refused(r):
    with pytest.raises(ValueError, match="whole number of at least 1"):
        LoRASettings(r, 8)


@pytest.mark.parametrize("settings", [{"lora_alpha": 0}, {"lora_alpha": -1.0},
                                      {"lora_alpha": math.nan}, {"lora_alpha": math.inf},
                                      {"lora_dropout": 1.0}, {"lora_dropout": -0.1}])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        LoRASettings(**{"r": 1, "lora_alpha": 1} | settings)


# --- merged -------------------------------------------------------------------------------------


def test_merging_twice_is_merging_once():
    """W 1, Δ .5: 1.5, and again 1.5, not 2; W itself stays 1."""
    module = layer(B=((0.5,),))
    for _ in range(2):
        module.merge(["default"])
        assert module.merged_weight.item() == 1.5 and module(torch.ones(1)).item() == 1.5
    assert module.weight.item() == 1
    module.unmerge()
    assert module.merged_weight is None and module(torch.ones(1)).item() == 1.5
    module.merge([])
    assert not module.merged


def test_what_was_learnt_since_is_merged_anew():
    module = layer(B=((0.5,),))
    module.merge(["default"])
    with torch.no_grad():
        module.lora_B["default"].fill_(2.0)
    assert module(torch.ones(1)).item() == 1.5  # what was merged then
    module.merge(["default"])
    assert module(torch.ones(1)).item() == 3.0


def test_a_kept_copy_gives_the_weight_back():
    """W .1 in bfloat16 is .10009765625. With Δ 1 it is 1.1015625; taking Δ off again would leave
    .1015625."""
    module = layer([[0.1]], B=((1.0,),)).bfloat16()
    module.merge(["default"])
    assert module.merged_weight.item() == 1.1015625 and module.merged_weight.item() - 1 == 0.1015625
    module.unmerge()
    assert module.weight.item() == 0.10009765625


def test_rounding_that_takes_the_update_is_measured():
    """W 1, Δ .003: 1.003 in float32. bfloat16 has steps of 1/128 there, and the sum is 1 again:
    all of the update is lost."""
    module = layer(B=((0.003,),))
    assert module.merge(["default"]) < 1e-4
    assert module.merged_weight.item() == pytest.approx(1.003, abs=1e-6)
    module = layer(B=((0.003,),))
    module.weight.data = module.weight.data.bfloat16()
    assert module.merge(["default"]) == pytest.approx(1, abs=1e-3)
    assert module.merged_weight.item() == 1


def test_training_what_is_merged_is_refused():
    module = layer(B=((0.5,),))
    module.merge(["default"])
    module.train()
    with pytest.raises(RuntimeError, match="unmerge_lora first"):
        module(torch.ones(1))
    with torch.no_grad():
        assert module(torch.ones(1)).item() == 1.5


# --- switched off -------------------------------------------------------------------------------


@pytest.mark.parametrize("merged", [False, True])
def test_disabled_takes_a_trained_bias_off_too(merged):
    """b 0 → 1, x 0: 1 with the adapter, and 0 without, as the reference of DPO must be. The bias is
    scaled as B A x is: alpha 2, r 1: 1 of .5. A layer without a bias of its own has none again."""
    for bias in ([0.0], None):
        module = layer(bias=bias, lora_bias=True, lora_alpha=2)
        with torch.no_grad():
            module.lora_bias["default"].fill_(0.5)
        if merged:
            module.merge(["default"])
        x = torch.zeros(1)
        assert module(x).item() == 1
        with disabled(module):
            assert module(x).item() == 0
        assert module(x).item() == 1
        assert module.plain()(x).item() == merged


# --- dropout, several, precision ----------------------------------------------------------------


def test_dropout_is_on_what_A_reads_alone():
    """W 1, B A 1, x 1, dropout .5: 1 + 0 or 1 + 2 while training, never 0; 2 in evaluation."""
    module = layer(B=((1.0,),), lora_dropout=0.5)
    assert module(torch.ones(64, 1)).unique().tolist() == [2]
    module.train()
    torch.manual_seed(0)
    assert module(torch.ones(64, 1)).unique().tolist() == [1, 3]


def test_active_adapters_are_added_up():
    """1 + 2 + 30: in both orders, also merged; one that is not active adds nothing."""
    module = layer(B=((2.0,),))
    add(module, "b", [[3.0]], [[10.0]])
    x = torch.ones(1)
    assert module(x).item() == 33
    module.merge(["b", "default"])
    assert module(x).item() == 33
    module.merge(["b"])
    assert module(x).item() == 31
    module.unmerge()
    module.active = ("b",)
    assert module(x).item() == 31


def test_half_precision_keeps_adapters_in_float32():
    """x and W in bfloat16, A and B not: the update is made in float32 and then rounded once."""
    plain = nn.Linear(1, 1, bias=False).bfloat16()
    module = LoRALinear(plain)
    add(module, "a", [[1.001]], [[1.0]])
    with torch.no_grad():
        module.weight.fill_(2.0)
    assert module.lora_A["a"].dtype == module.lora_B["a"].dtype == torch.float32
    y = module(torch.ones(1, 1, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and y.item() == 3
    y.sum().backward()
    assert module.lora_B["a"].grad.item() == pytest.approx(1.001)


def test_autocast_computes_all_of_it_in_bfloat16():
    module = layer([[2.0]], [[1.0]], [[1.0]])
    with torch.autocast("cpu", torch.bfloat16):
        y = module(torch.ones(3, 1))
    assert y.dtype == torch.bfloat16 and y.unique().tolist() == [3]


def test_nothing_of_it_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = layer(B=((0.5,),), lora_bias=True)
        module.merge(["default"])
        module.plain()

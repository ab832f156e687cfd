"""Muon: singular values, one step by hand, who gets which parameter, and state that resumes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import llama
from torch import nn
from torch.optim import AdamW

from course_lib.models import to_transformers
from course_lib.optim import CombinedOptimizer, Muon, muon_adamw, orthogonalize


def iterate(x: float) -> float:
    """Five steps of the quintic on one number, its coefficients written out."""
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return x


def matrix(rows, columns, values, seed):
    """A float64 matrix with the given singular values, and its U and V."""
    g = torch.Generator().manual_seed(seed)
    u, _, vh = torch.linalg.svd(
        torch.randn(rows, columns, generator=g, dtype=torch.float64), full_matrices=False
    )
    return u @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ vh, u, vh


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.integers(1, 7), columns=st.integers(1, 7), data=st.data(), seed=st.integers(0, 999))
def test_orthogonalize_maps_each_singular_value_and_keeps_the_directions(
    rows, columns, data, seed
):
    """U S Vᵀ becomes U p(S/‖S‖) Vᵀ, because (x xᵀ)ᵏ x = U S²ᵏ⁺¹ Vᵀ."""
    n = min(rows, columns)
    values = data.draw(st.lists(st.floats(0.1, 1000), min_size=n, max_size=n))
    x, u, vh = matrix(rows, columns, values, seed)
    norm = sum(v * v for v in values) ** 0.5
    mapped = torch.tensor([iterate(v / norm) for v in values], dtype=torch.float64)
    torch.testing.assert_close(orthogonalize(x[None])[0], u @ mapped.diag() @ vh, atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), data=st.data(),
       scale=st.sampled_from([1e-3, 1.0, 1e3]), seed=st.integers(0, 999))  # fmt: skip
def test_singular_values_end_up_in_the_stated_range(rows, columns, data, scale, seed):
    """0.68 to 1.21 from 1/500 of the norm on, whatever the gradient's scale.

    Values of at most 1 and at least 1/160 in at most nine places: the smallest is above
    1/(160 · 3) = 1/480 of the norm.
    """
    n = min(rows, columns)
    values = data.draw(st.lists(st.floats(1 / 160, 1), min_size=n, max_size=n))
    x, _, _ = matrix(rows, columns, [scale * v for v in values], seed)
    after = torch.linalg.svdvals(orthogonalize(x.float()[None])[0])
    assert after.min() >= 0.68 and after.max() <= 1.21


def test_the_iteration_is_what_narrows_the_range():
    """Control: ratio 1 : 1/160 before, within 0.68..1.21 after, and outside without steps."""
    x, _, _ = matrix(2, 2, [1.0, 1 / 160], 0)
    assert torch.linalg.svdvals(orthogonalize(x[None], steps=0)[0]).min() < 0.01
    assert torch.linalg.svdvals(orthogonalize(x[None])[0]).min() > 0.68


def test_a_batch_is_its_matrices_one_by_one():
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    one_by_one = torch.cat([orthogonalize(m[None]) for m in x])
    torch.testing.assert_close(orthogonalize(x), one_by_one)
    torch.testing.assert_close(orthogonalize(x.mT), one_by_one.mT)


def test_a_zero_matrix_stays_zero():
    assert orthogonalize(torch.zeros(1, 3, 2)).tolist() == [[[0.0, 0.0]] * 3]


def test_steps_by_hand():
    """A 4 x 1 column has one singular value, its length, and is divided by it. Five steps
    of the quintic from 1 give 0.701, 1.114, 0.721, 1.090, 0.696 = s. The step is lr · √(4/1) · s
    along gradient + momentum · buffer, after the weights shrank by lr · decay = 0.05.
    Step 1, gradient (3, 4, 0, 0): buffer the same, direction (0.6, 0.8, 0, 0).
    Step 2, gradient (0, 0, 0, 10): buffer (1.5, 2, 0, 10), ahead (0.75, 1, 0, 15).
    Without Nesterov's look-ahead the direction would be that of (1.5, 2, 0, 10).
    """
    p = nn.Parameter(torch.ones(4, 1))
    optimizer = Muon([p], lr=0.1, momentum=0.5, weight_decay=0.5)
    s = iterate(1.0)
    assert s == pytest.approx(0.696, abs=5e-4)
    p.grad = torch.tensor([[3.0], [4.0], [0.0], [0.0]])
    optimizer.step()
    first = 0.95 - 0.1 * 2 * s * torch.tensor([[0.6], [0.8], [0.0], [0.0]])
    torch.testing.assert_close(p.data, first)
    p.grad = torch.tensor([[0.0], [0.0], [0.0], [10.0]])
    optimizer.step()
    ahead = torch.tensor([[0.75], [1.0], [0.0], [15.0]])
    length = (0.75**2 + 1 + 15**2) ** 0.5
    torch.testing.assert_close(p.data, 0.95 * first - 0.1 * 2 * s * ahead / length)


def test_a_wide_matrix_takes_no_larger_step():
    """1 x 4: √(rows/columns) = 1/2 would shorten the step; max(1, ·) keeps it at lr · s."""
    p = nn.Parameter(torch.zeros(1, 4))
    p.grad = torch.tensor([[0.0, 0.0, -2.0, 0.0]])
    Muon([p], lr=0.1).step()
    torch.testing.assert_close(p.data, torch.tensor([[0.0, 0.0, 0.1 * iterate(1.0), 0.0]]))


def test_parameters_of_one_shape_do_not_mix():
    """Together or alone, three parameters (two of one shape, one without a gradient) move alike."""
    def run(together):
        g = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(*s, generator=g)) for s in ((3, 2), (3, 2), (2, 3))]
        grads = [torch.randn(3, 2, generator=g) for _ in range(2)]
        groups = [params] if together else [[p] for p in params]
        optimizers = [Muon(group) for group in groups]
        for _ in range(3):
            for p, grad in zip(params, grads, strict=False):
                p.grad = grad.clone()
            for o in optimizers:
                o.step()
        return params

    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b)


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match=r"shape \(3,\): give it to AdamW"):
        Muon([nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3))])


def split_of(model):
    """Names that Muon and AdamW get; every trainable parameter once."""
    names = {id(p): n for n, p in model.named_parameters()}
    split = {}
    for o in muon_adamw(model).optimizers:
        split[type(o)] = {names[id(p)] for group in o.param_groups for p in group["params"]}
    return split.get(Muon, set()), split.get(AdamW, set())


MATRICES = {"attention.q", "attention.k", "attention.v", "attention.out", "feed_forward.gate",
            "feed_forward.up", "feed_forward.down"}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_muon_gets_the_hidden_matrices_and_adamw_the_rest(tied):
    muon, adamw = split_of(llama(tie_embeddings=tied))
    assert muon == {f"blocks.{i}.{m}.weight" for i in (0, 1) for m in MATRICES}
    norms = {f"blocks.{i}.{n}_norm.weight" for i in (0, 1) for n in ("attention", "feed_forward")}
    assert adamw == norms | {"embed.weight", "norm.weight"} | (set() if tied else {"head.weight"})


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_transformers_is_split_alike(tied):
    """Its output matrix is called lm_head; it went to Muon once."""
    muon, adamw = split_of(to_transformers(llama(tie_embeddings=tied)))
    assert len(muon) == 14 and all("_proj." in name for name in muon)
    assert "model.embed_tokens.weight" in adamw and ("lm_head.weight" in adamw) != tied


class PolicyWithCritic(nn.Module):
    """What reinforcement learning trains: two models in one, a scalar on every token, a prompt."""

    def __init__(self):
        super().__init__()
        self.policy, self.critic = llama(tie_embeddings=False), llama(tie_embeddings=False)
        self.to_scalar = nn.Linear(24, 1)
        self.score = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 2))
        self.soft_prompt = nn.Parameter(torch.zeros(5, 24))


def test_what_is_not_hidden_stays_out_of_muon_wherever_it_stands():
    """The output matrices of inner models went to Muon once, and so did a scalar's row, which Muon
    would give a step of one length whatever its gradient; a soft prompt is made of embeddings."""
    muon, adamw = split_of(PolicyWithCritic())
    assert muon == {f"{model}.blocks.{i}.{m}.weight" for model in ("policy", "critic")
                    for i in (0, 1) for m in MATRICES}  # fmt: skip
    assert {"policy.head.weight", "critic.head.weight", "policy.embed.weight", "to_scalar.weight",
            "score.0.weight", "score.1.weight", "soft_prompt"} <= adamw  # fmt: skip


def test_the_matrices_of_gpt_2_in_transformers_are_hidden_its_positions_are_not():
    """Its layers are ``Conv1D``, not ``nn.Linear``; a classifier's ``score`` is a head."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    model = GPT2ForSequenceClassification(GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, num_labels=3))  # fmt: skip
    muon, adamw = split_of(model)
    assert {name.split(".h.0.")[-1] for name in muon} == {
        "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
    assert {"score.weight", "transformer.wpe.weight", "transformer.wte.weight"} <= adamw


def test_frozen_parameters_go_nowhere():
    model = llama().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        muon_adamw(model)
    model.blocks[0].attention.q.weight.requires_grad_()
    assert split_of(model) == ({"blocks.0.attention.q.weight"}, set())
    model.requires_grad_(False).norm.weight.requires_grad_()
    assert split_of(model) == (set(), {"norm.weight"})


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        ids = torch.randint(0, 13, (2, 6), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(ids).logits.logsumexp(-1).square().mean().backward()
        optimizer.step()


def test_a_saved_state_continues_to_the_same_bits(tmp_path):
    """Three steps, saved and loaded, three more: the weights of six steps without a stop.

    Fresh optimizers in the middle would lose the momentum and end elsewhere.
    """
    whole = llama()
    train(whole, muon_adamw(whole, weight_decay=0.1), 6)
    ends = {}
    for resume in (True, False):
        model = llama()
        optimizer = muon_adamw(model, weight_decay=0.1)
        train(model, optimizer, 3)
        torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
        weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
        model = llama(seed=9)
        model.load_state_dict(weights)
        optimizer = muon_adamw(model, muon_lr=7.0 if resume else 0.02, weight_decay=0.1)
        if resume:
            optimizer.load_state_dict(state)
        train(model, optimizer, 3, start=3)
        ends[resume] = model.state_dict()
    want = whole.state_dict()
    assert all(torch.equal(ends[True][n], want[n]) for n in want)
    assert not torch.equal(ends[False]["blocks.0.attention.q.weight"],
                           want["blocks.0.attention.q.weight"])  # fmt: skip


def test_a_state_of_another_number_of_optimizers_is_refused():
    p, q = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    both = CombinedOptimizer(Muon([p]), AdamW([q]))
    with pytest.raises(ValueError):
        both.load_state_dict(CombinedOptimizer(AdamW([q])).state_dict())


def test_learning_rates_are_set_through_the_groups():
    """A schedule writes to ``param_groups``; both optimizers must see it: at 0 nothing moves."""
    model = llama()
    optimizer = muon_adamw(model, muon_lr=0.5, adamw_lr=0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {n: p.clone() for n, p in model.state_dict().items()}
    train(model, optimizer, 1)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_zero_grad_reaches_both():
    model = llama()
    optimizer = muon_adamw(model)
    model(torch.tensor([[1, 2]])).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())

"""DPO: losses and gradients by hand, padding and packing, a reference that must stay, training."""

import copy
import doctest
import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from random_families import build
from random_models import llama
from text_models import Bigrams, Words
from torch.testing import assert_close
from toy_policy import ALL, PROMPT, reference

from course_lib import dpo
from course_lib.dpo import (
    Pair,
    ReferencePairs,
    collate_pairs,
    dpo_loss,
    fingerprint,
    pair_logps,
    pair_loss,
    reference_pairs,
)
from course_lib.enumeration import exact_optimum, kl_divergence, policy_distribution
from course_lib.training import train

TOLERANCE = 1e-5
PAD = 1
SMALL = {"vocab_size": 13, "layers": 2, "heads": 3, "width": 4, "inner": 9, "length": 16,
         "tied": False}  # fmt: skip
MODELS = ["Llama", "LlamaForCausalLM", "GPT2LMHeadModel", "BloomForCausalLM"]
PAIRS = [Pair([3, 1, 4], [1, 5, 9], [2, 6]), Pair([5], [8, 9, 7, 9, 3], [2]),
         Pair([3, 8, 4, 6], [2], [6, 4, 3]), Pair([3, 2], [7], [9, 5])]  # fmt: skip
NAN, INF = math.nan, math.inf


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(name: str, seed: int = 0, **changes):
    if name == "Llama":
        return llama(seed)
    return build(getattr(transformers, name), SMALL, seed, **changes)


def losses_of(h, beta=1.0, **settings) -> torch.Tensor:
    """Losses of pairs whose log-ratio of chosen minus rejected is h, all of it the policy's."""
    h = torch.as_tensor(h, dtype=torch.float32)
    zero = torch.zeros_like(h)
    return dpo_loss(h, zero, zero, zero, beta, **settings)[0]


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(dpo, extraglobs={"torch": torch})
    assert result.attempted >= 2 and not result.failed


# --- the loss -----------------------------------------------------------------------------------


def test_the_loss_by_hand():
    """-log σ(1) = .3133, -log σ(0) = .6931, -log σ(-1) = 1.3133, each from all four: h = (-2 + 5) -
    (-4 + 2) - 4 of the reference's. β 2 doubles h: -log σ(2) = .1269."""
    assert_close(losses_of([1.0, 0.0, -1.0]), torch.tensor([0.3133, 0.6931, 1.3133]),
                 atol=1e-4, rtol=0)  # fmt: skip
    four = [torch.tensor([x]) for x in (-2.0, -4.0, -5.0, -6.0)]  # h = 3 - 2 = 1
    losses, chosen_rewards, rejected_rewards = dpo_loss(*four, beta=2.0)
    assert losses.item() == pytest.approx(0.1269, abs=1e-4)
    assert (chosen_rewards.item(), rejected_rewards.item()) == (6, 4)


def test_smoothing_mixes_the_loss_of_both_orders():
    """β h = 1, ε = .1: .9 · .3133 + .1 · 1.3133 = .4133; the other way round 1.2133."""
    assert losses_of([1.0], label_smoothing=0.1).item() == pytest.approx(0.4133, abs=1e-4)
    assert losses_of([2.0], 0.5, label_smoothing=0.1).item() == pytest.approx(0.4133, abs=1e-4)


def test_smoothing_is_least_where_the_odds_are_those_of_the_labels():
    """ε = .2: at β h = log 4, where σ = .8. Without it the loss falls for ever."""
    h = torch.tensor([math.log(4)], requires_grad=True)
    zero = torch.zeros(1)
    dpo_loss(h, zero, zero, zero, 1.0, label_smoothing=0.2)[0].sum().backward()
    assert h.grad.item() == pytest.approx(0, abs=1e-6)
    assert losses_of([math.log(4)])[0] > losses_of([9.0])[0] > losses_of([20.0])[0]


def test_ipo_by_sum_and_by_mean():
    """Chosen: 4 tokens of .5; rejected: 2 of .25; β .5, so that 1/(2β) = 1. Means: (.25 - 1)² =
    .5625. Sums: (2 - .5 - 1)² = .25. With the lengths swapped the means are 1 and .125."""
    chosen, rejected, zero = torch.tensor([2.0]), torch.tensor([0.5]), torch.zeros(1)
    lengths = {"chosen_tokens": torch.tensor([4]), "rejected_tokens": torch.tensor([2])}
    for kind, want in (("ipo_mean", 0.5625), ("ipo_sum", 0.25)):
        losses, *rewards = dpo_loss(chosen, rejected, zero, zero, 0.5, loss_type=kind, **lengths)
        assert losses.item() == pytest.approx(want)
        assert [reward.item() for reward in rewards] == [1, 0.25]  # of the sums


def test_ipo_has_an_aim():
    """β = 2: h = 1/4, and any other costs more; DPO's loss falls on."""
    near = losses_of([0.25, 0.2, 0.3], 2.0, loss_type="ipo_sum")
    assert near[0] == 0 and near[1:].min() > 0.002


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_loss_is_finite_at_any_magnitude(dtype):
    """h = -100 costs 100, with gradient -1; the logarithm of σ(-100) = 0 would be infinite."""
    h = torch.tensor([-100.0, 100.0], dtype=dtype, requires_grad=True)
    zero = torch.zeros(2, dtype=dtype)
    losses, *rewards = dpo_loss(h, zero, zero, zero, 1.0)
    assert losses.tolist() == pytest.approx([100, 0], abs=1e-6)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    losses.sum().backward()
    assert h.grad.tolist() == pytest.approx([-1, 0], abs=1e-6)
    assert not any(reward.requires_grad for reward in rewards)


logps = st.lists(st.floats(-30, 0), min_size=4, max_size=4)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(logps, min_size=1, max_size=5), st.floats(0.01, 3), st.floats(-9, 9))
def test_swapping_and_shifting(rows, beta, shift):
    """Swapped, a pair costs β h more, for log σ(-x) = log σ(x) - x. What a prompt adds to both
    responses of a pair, as β log Z does, drops out."""
    pc, pr, rc, rr = torch.tensor(rows, dtype=torch.float64).unbind(1)
    losses, chosen, rejected = dpo_loss(pc, pr, rc, rr, beta)
    swapped, *rewards = dpo_loss(pr, pc, rr, rc, beta)
    assert_close(swapped - losses, beta * ((pc - rc) - (pr - rr)), atol=1e-9, rtol=1e-9)
    assert torch.equal(rewards[0], rejected) and torch.equal(rewards[1], chosen)
    assert_close(dpo_loss(pc + shift, pr + shift, rc, rr, beta)[0], losses, atol=1e-9, rtol=1e-9)


def test_the_gradient_is_that_of_the_paper():
    """-β σ(r̂_l - r̂_w) (∇ log π(y_w) - ∇ log π(y_l)) (Rafailov et al., 2023, section 4): by hand
    for h = log 3, β = 1, where the weight is σ(-log 3) = 1/4; and of a model's weights, put
    together from the gradients of its log-probabilities."""
    h, zero = torch.tensor([math.log(3)], requires_grad=True), torch.zeros(1)
    dpo_loss(h, zero, zero, zero, 1.0)[0].sum().backward()
    assert h.grad.item() == pytest.approx(-0.25)
    model, ref, beta = llama(0), llama(1), 0.7
    batch = collate_pairs(PAIRS, PAD)
    with torch.no_grad():
        rc, rr = pair_logps(ref, batch)
    parts = list(model.parameters())
    loss, _ = pair_loss(beta)(model, batch | {"ref_chosen_logps": rc, "ref_rejected_logps": rr})
    found = torch.autograd.grad(loss, parts)
    pc, pr = pair_logps(model, batch)
    weights = 1 / (1 + (beta * ((pc - rc) - (pr - rr))).exp()).detach()  # σ(r̂_l - r̂_w)
    want = [torch.zeros_like(p) for p in parts]
    for w, chosen, rejected in zip(weights, pc, pr):
        up = torch.autograd.grad(chosen, parts, retain_graph=True)
        down = torch.autograd.grad(rejected, parts, retain_graph=True)
        for total, a, b in zip(want, up, down):
            total -= beta * w * (a - b) / len(PAIRS)
    assert weights.max() - weights.min() > 0.1
    for ours, theirs in zip(found, want):
        assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"beta": 0.0}, ValueError, "beta must be finite and above 0, got 0.0"),
        ({"beta": -1.0}, ValueError, "beta must be finite and above 0"),
        ({"beta": NAN}, ValueError, "beta must be finite and above 0"),
        ({"label_smoothing": 0.5}, ValueError, r"must lie in \[0, 0.5\), got 0.5"),
        ({"label_smoothing": -0.1}, ValueError, r"must lie in \[0, 0.5\)"),
        ({"label_smoothing": 0.1, "loss_type": "ipo_sum"}, ValueError, "ipo_sum has none"),
        ({"loss_type": "ipo"}, ValueError, "one of sigmoid, ipo_sum, ipo_mean, got 'ipo'"),
        ({"loss_type": "ipo_mean"}, ValueError, "divides by chosen_tokens.*got none"),
        ({"loss_type": "ipo_mean", "chosen_tokens": torch.tensor([1, 0])}, ValueError,
         r"numbers of at least 1, got \(2,\) \[1, 0\]"),
        ({"policy_chosen_logps": torch.zeros(2, 1)}, ValueError, r"must all be \(B,\).*\(2, 1\)"),
        ({"ref_rejected_logps": torch.zeros(1)}, ValueError, r"must all be \(B,\)"),
        ({"ref_chosen_logps": torch.tensor([0.0, NAN])}, FloatingPointError,
         r"ref_chosen_logps must be finite, got \[nan\], 1 of 2"),
        ({"policy_rejected_logps": torch.tensor([-INF, 0.0])}, FloatingPointError,
         "policy_rejected_logps must be finite"),
    ],
)  # fmt: skip
def test_bad_input_is_told(changes, error, message):
    zeros = {f"{who}_{which}_logps": torch.zeros(2)
             for who in ("policy", "ref") for which in ("chosen", "rejected")}  # fmt: skip
    with pytest.raises(error, match=message):
        dpo_loss(**(zeros | {"beta": 1.0} | changes))


def test_no_pairs_and_settings_are_told_before_a_step():
    with pytest.raises(ValueError, match="at least one pair"):
        losses_of([])
    for settings_ in ({"beta": 0}, {"beta": 1, "loss_type": "x"},
                      {"beta": 1, "label_smoothing": 1}):  # fmt: skip
        with pytest.raises(ValueError):
            pair_loss(**settings_)


# --- log-probabilities of responses -------------------------------------------------------------

WORDS = Words("<|end|> pad a b c d")
TABLE = Bigrams(WORDS, {"a": {"b": 0.5, "c": 0.5}, "b": {"c": 0.25, "d": 0.75}, "c": {"d": 1.0}})


@pytest.mark.parametrize("packed", [False, True])
def test_sums_over_the_response_alone(packed):
    """a, then b | c d or d pad: p(c after b) p(d after c) = 1/4 · 1 and p(d after b) = 3/4. The
    prompt a b has p = 1/2: counted in one half alone, h would be off by log 2. Labels one place
    late would begin with p(d after c)."""
    batch = collate_pairs([([2, 3], [4, 5], [5])], PAD)
    chosen, rejected = pair_logps(TABLE, batch, packed=packed)
    assert chosen.exp().item() == pytest.approx(0.25)
    assert rejected.exp().item() == pytest.approx(0.75)


@pytest.mark.parametrize("name", MODELS)
def test_padding_order_and_the_other_pairs_of_a_batch_do_not_matter(name):
    """Each response read alone, without padding and token by token; in any batch; wider batches."""
    model = model_of(name)

    def alone(prompt, response) -> float:
        ids = torch.tensor([[*prompt, *response]])
        logprobs = model(ids).logits.log_softmax(-1)[0]
        return sum(logprobs[len(prompt) + i - 1, token] for i, token in enumerate(response))

    with torch.no_grad():
        want = torch.tensor([[alone(p, c), alone(p, r)] for p, c, r in PAIRS])
        for order in ([0, 1, 2, 3], [3, 1], [2]):
            for pad in (0, 12):
                found = pair_logps(model, collate_pairs([PAIRS[i] for i in order], pad))
                assert_close(torch.stack(found, 1), want[order], atol=TOLERANCE, rtol=0)
        for size in (1, 3, 99):
            data = reference_pairs(model, PAIRS, PAD, batch_size=size)
            assert_close(torch.stack([data.chosen_logps, data.rejected_logps], 1), want,
                         atol=TOLERANCE, rtol=0)  # fmt: skip
    assert not data.chosen_logps.requires_grad and want.std() > 0.5


@pytest.mark.parametrize("name", ["Llama", "LlamaForCausalLM", "GPT2LMHeadModel"])
def test_packed_rows_give_the_same_log_probabilities_and_gradients(name):
    model, batch = model_of(name), collate_pairs(PAIRS, PAD)
    results = []
    for packed in (False, True):
        chosen, rejected = pair_logps(model, batch, 0.7, packed)
        grads = torch.autograd.grad((chosen - 2 * rejected).sum(), list(model.parameters()))
        results.append([chosen, rejected, *grads])
    for padded, packed in zip(*results):
        size = padded.abs().max().clamp(min=1)
        assert_close(packed / size, padded / size, atol=TOLERANCE, rtol=0)


def test_packing_reads_less(monkeypatch):
    """Rows of 4, 3, 2, 2 tokens: 16 places padded. Packed into 6: 4 + 2 and 3 + 2, in 12 places."""
    read, forward = [], TABLE.forward

    def counting(ids, **more):
        read.append(ids.numel())
        return forward(ids, **more)

    monkeypatch.setattr(TABLE, "forward", counting)
    batch = collate_pairs([([2], [3, 4, 5], [4, 5]), ([3], [4], [5])], PAD)
    for packed, places in ((False, 16), (True, 12)):
        pair_logps(TABLE, batch, packed=packed)
        assert read.pop() == places


def test_the_temperature_divides_the_logits():
    """At 1/2 the odds 1 : 3 become 1 : 9."""
    batch = collate_pairs([([3], [4], [5])], PAD)
    chosen, rejected = (logps.exp().item() for logps in pair_logps(TABLE, batch, 0.5))
    assert (chosen, rejected) == (pytest.approx(0.1), pytest.approx(0.9))
    data = reference_pairs(TABLE, [([3], [4], [5])], PAD, temperature=0.5)
    assert data.chosen_logps.exp().item() == pytest.approx(0.1)
    assert data.temperature == 0.5


# --- the reference ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("packed", [False, True])
def test_the_start_costs_log_2(name, packed):
    """Policy and reference are equal: h = 0, .6931, rewards 0. A reference that is 1 away on the
    preferred response, as before an SFT, costs .3133 at β 1."""
    if packed and name == "BloomForCausalLM":
        pytest.skip("over there BLOOM knows texts by its mask alone")
    ref = model_of(name)
    data = reference_pairs(ref, PAIRS, PAD)
    batch = next(data.batches(ref, PAD, 4, generator()))
    loss, numbers = pair_loss(1.0, packed=packed)(copy.deepcopy(ref).train(), batch)
    assert loss.item() == pytest.approx(math.log(2), abs=TOLERANCE) and loss.count == 4
    for figure in ("chosen_rewards", "rejected_rewards", "margin"):
        assert numbers[figure].item() == pytest.approx(0, abs=TOLERANCE)
    batch["ref_chosen_logps"] -= 1
    loss, numbers = pair_loss(1.0, packed=packed)(ref, batch)
    assert loss.item() == pytest.approx(0.3133, abs=1e-4)
    assert numbers["margin"].item() == pytest.approx(1, abs=1e-4) and numbers["accuracy"] == 1


def test_dropout_is_off_and_the_mode_comes_back():
    model = model_of("GPT2LMHeadModel", resid_pdrop=0.5, embd_pdrop=0.5).train()
    data = reference_pairs(model, PAIRS, PAD)
    assert model.training and model.transformer.drop.training
    batch = next(data.batches(model, PAD, 4, generator()))
    loss, _ = pair_loss(1.0)(model, batch)
    assert loss.item() == pytest.approx(math.log(2), abs=TOLERANCE)
    assert model.training and loss.requires_grad


def test_another_reference_is_refused(tmp_path):
    """One weight of it moved by a rounding, or another vocabulary: not a batch comes."""
    ref = llama(0)
    data = reference_pairs(ref, PAIRS, PAD)
    data.save(tmp_path / "pairs.json")
    again = ReferencePairs.load(tmp_path / "pairs.json", copy.deepcopy(ref))
    assert again.pairs == data.pairs and again.temperature == data.temperature
    assert torch.equal(again.chosen_logps, data.chosen_logps)
    assert torch.equal(again.rejected_logps, data.rejected_logps)
    moved = copy.deepcopy(ref)
    with torch.no_grad():
        moved.norm.weight[0] = torch.nextafter(moved.norm.weight[0], torch.tensor(9.0))
    wider = llama(0, vocab_size=14)
    for other, message in ((moved, "trained since"), (wider, "13 tokens, and this one has 14")):
        with pytest.raises(ValueError, match=message):
            data.batches(other, PAD, 2, generator())
        with pytest.raises(ValueError, match=message):
            ReferencePairs.load(tmp_path / "pairs.json", other)


def test_the_fingerprint_is_of_the_weights():
    """A copy has the same, in whatever mode; other names, types or numbers have another."""
    model = llama(0)
    found = fingerprint(model)
    assert fingerprint(copy.deepcopy(model).train()) == found and len(found) == 64
    others = [llama(1), llama(0, n_layer=1), llama(0).bfloat16(), llama(0).double()]
    assert len({found, *map(fingerprint, others)}) == 5


def test_no_pairs_to_read_are_told():
    for pairs, size in (([], 2), (PAIRS, 0)):
        with pytest.raises(ValueError, match="expected at least one of both"):
            reference_pairs(llama(0), pairs, PAD, batch_size=size)
    impossible = Bigrams(WORDS, {})
    with torch.no_grad():
        impossible.table[2, 3] = -INF
    with pytest.raises(FloatingPointError, match="ref_chosen_logps must be finite"):
        reference_pairs(impossible, [([2], [3], [4])], PAD)


# --- training -----------------------------------------------------------------------------------


def test_what_is_logged_by_hand():
    """Two pairs, β 2. a: log-ratios log 2 and 0; b: 0 and log 2. Margins ± 2 log 2, one right:
    means 0, rewards log 2 each. Losses log(1 + 1/4) and log(1 + 4)."""
    batch = collate_pairs([([3], [5], [4]), ([2], [3], [4])], PAD)
    ref_chosen = torch.tensor([3 / 8, 1 / 2]).log()
    ref_rejected = torch.tensor([1 / 4, 1 / 4]).log()
    batch |= {"ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}
    loss, numbers = pair_loss(2.0)(TABLE, batch)
    assert loss.item() == pytest.approx((math.log(5 / 4) + math.log(5)) / 2)
    want = {"chosen_rewards": math.log(2), "rejected_rewards": math.log(2), "margin": 0.0,
            "accuracy": 0.5, "chosen_logps": math.log(3 / 8) / 2,
            "rejected_logps": math.log(1 / 8) / 2}  # fmt: skip
    assert {k: v.item() for k, v in numbers.items()} == pytest.approx(want, abs=1e-6)


def test_ipo_by_mean_divides_by_the_tokens_of_each_response():
    """3 of 3 tokens and 1 of 1: log-ratios (log 8)/3 = log 2 and 0; 1/(2β) = log 2 costs nothing;
    a swap of the lengths, or the padded width, would."""
    batch = collate_pairs([([2], [3, 4, 5], [4])], PAD)
    chosen, rejected = pair_logps(TABLE, batch)
    batch |= {"ref_chosen_logps": chosen.detach() - math.log(8), "ref_rejected_logps": rejected}
    beta = 1 / (2 * math.log(2))
    assert pair_loss(beta, loss_type="ipo_mean")(TABLE, batch)[0].item() < 1e-9
    assert pair_loss(beta, loss_type="ipo_sum")(TABLE, batch)[0].item() > 1


def drawn_pairs(count: int, seed: int) -> list[Pair]:
    """Of two responses of one to five tokens, the one with more sevens is preferred."""
    g, pairs = generator(seed), []
    while len(pairs) < count:
        prompt = torch.randint(2, 13, (2,), generator=g).tolist()
        rows = [torch.randint(5, 9, (int(n),), generator=g).tolist()
                for n in torch.randint(1, 6, (2,), generator=g)]  # fmt: skip
        rows.sort(key=lambda row: -row.count(7))
        if rows[0].count(7) > rows[1].count(7):
            pairs.append(Pair(prompt, *rows))
    return pairs


@pytest.mark.parametrize("name", ["Llama", "LlamaForCausalLM"])
def test_a_policy_learns_what_is_preferred(name):
    """Nine of ten pairs that it has not seen; the reference stays as it was."""
    ref = model_of(name)
    data, held_out = (reference_pairs(ref, drawn_pairs(n, seed), PAD)
                      for n, seed in ((400, 0), (100, 1)))  # fmt: skip
    policy = copy.deepcopy(ref)
    stream = data.batches(ref, PAD, 16, generator())
    history = train(policy, stream, pair_loss(0.5), max_steps=60, lr=5e-3, progress=False)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=TOLERANCE)
    with torch.no_grad():
        batch = next(held_out.batches(ref, PAD, 100, generator()))
        loss, numbers = pair_loss(0.5)(policy, batch)
    assert numbers["accuracy"] > 0.9 and loss < 0.5 and numbers["margin"] > 0


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """Six steps at once, or four and then two more: the same losses."""
    ref = llama(0)
    data = reference_pairs(ref, drawn_pairs(10, 0), PAD)

    def run(steps, folder=None) -> list[float]:
        history = train(copy.deepcopy(ref), data.batches(ref, PAD, 4, generator()), pair_loss(0.5),
                        max_steps=steps, lr=1e-2, schedule="constant", checkpoint_dir=folder,
                        progress=False)  # fmt: skip
        return [row["loss"] for row in history]

    run(4, tmp_path)
    assert run(6, tmp_path) == run(6)


def test_batches_of_a_step_count_by_their_pairs():
    """One pair and three in two batches, or four in one: the same loss and numbers."""
    model, ref = llama(1), llama(0)
    data = reference_pairs(ref, PAIRS, PAD)

    def batch(which) -> dict:
        logps = data.chosen_logps[which], data.rejected_logps[which]
        return collate_pairs([PAIRS[i] for i in which], PAD, logps)

    rows = [train(copy.deepcopy(model), some, pair_loss(0.5), max_steps=1, progress=False,
                  gradient_accumulation=len(some))[0]
            for some in ([batch([0]), batch([1, 2, 3])], [batch([0, 1, 2, 3])])]  # fmt: skip
    for name in ("loss", "grad_norm", "margin", "accuracy", "chosen_logps"):
        assert rows[0][name] == pytest.approx(rows[1][name], abs=1e-4)


# --- where all responses can be counted ---------------------------------------------------------


def tune(seed: int, beta: float, swap: bool = False):
    """400 steps of 512 fresh pairs: two responses of the policy as it is, of which the first is
    preferred with probability σ(r_1 - r_2); scores are random, in [0, 1].

    Returns:
        The policy's distribution, the reference's, the scores.
    """
    ref, g = reference(seed), generator(seed + 100)
    scores = torch.rand(31, generator=g)
    before = policy_distribution(ref, PROMPT, ALL)
    logps = before.log().float()
    rows = collate_pairs([(PROMPT, row, row) for row in ALL], 0)
    policy = copy.deepcopy(ref)

    class Fresh:
        live = True

        def __iter__(self):
            while True:
                with torch.no_grad():
                    now = policy_distribution(policy, PROMPT, ALL)
                drawn = torch.multinomial(now, 1024, True, generator=g).view(-1, 2)
                drawn = drawn[drawn[:, 0] != drawn[:, 1]]
                lead = scores[drawn[:, 0]] - scores[drawn[:, 1]]
                wins = torch.rand(len(lead), generator=g) < lead.sigmoid()
                pairs = torch.where(wins[:, None] ^ swap, drawn, drawn.flip(1))  # (B, 2)
                batch = {name: tensor[:, 0][pairs] for name, tensor in rows.items()}
                yield batch | {"ref_chosen_logps": logps[pairs[:, 0]],
                               "ref_rejected_logps": logps[pairs[:, 1]]}  # fmt: skip

    train(policy, Fresh(), pair_loss(beta), max_steps=400, lr=6e-3, progress=False)
    return policy_distribution(policy, PROMPT, ALL), before, scores


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_dpo_on_fresh_pairs_ends_at_the_exact_optimum(seed, beta):
    """KL(π ‖ π*) < .01, where the reference is .03 to .2 away from π*; and π is nearer to it than
    to the optimum of twice or half the weight."""
    probs, ref, scores = tune(seed, beta)
    best = exact_optimum(ref, scores, beta)
    near = kl_divergence(probs, best)
    assert near < 0.01 < 0.03 < kl_divergence(ref, best)
    others = [exact_optimum(ref, scores, factor * beta) for factor in (0.5, 2)]
    assert min(kl_divergence(probs, other) for other in others) > 2 * near


def test_preferences_the_wrong_way_round_end_elsewhere():
    probs, ref, scores = tune(0, 0.5, swap=True)
    assert kl_divergence(probs, exact_optimum(ref, scores, 0.5)) > 0.2

"""PPO's policy with its critic, its stream of rollouts, checkpoints, bad input, and learning."""

import copy
import doctest
import itertools
import math

import pytest
import torch
from random_families import build
from random_models import llama
from torch.testing import assert_close
from transformers import GPT2LMHeadModel

from course_lib import ppo_rollouts
from course_lib.live_rollouts import read_responses
from course_lib.models import WithScalarHead
from course_lib.models.heads import read
from course_lib.ops import IGNORE_INDEX, token_logprobs
from course_lib.ppo import PPOSettings, gae, ppo_loss
from course_lib.ppo_rollouts import ActorCritic, AdaptiveKL, FixedKL, PPORollouts
from course_lib.rollout import rollout
from course_lib.training import train

END = 0
PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6, 5]]


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(ppo_rollouts)
    assert result.attempted >= 3 and not result.failed


# --- control of the KL --------------------------------------------------------------------------


def test_the_adaptive_weight_follows_its_target():
    """Target 6, horizon 1000, 100 responses: K = .1. KL 6.6: error .1, · 1.01. KL 60: clipped to
    .2, · 1.02. KL -3: clipped to -.2, · .98."""
    for kl, factor in ((6.6, 1.01), (60, 1.02), (-3, 0.98), (6, 1.0)):
        control = AdaptiveKL(0.5, target=6, horizon=1000)
        control.update(kl, 100)
        assert control.kl_coef == pytest.approx(0.5 * factor)
    again = AdaptiveKL(0.1, 6, 1000)
    again.load_state_dict(control.state_dict())
    assert again.kl_coef == control.kl_coef
    fixed = FixedKL(0.5)
    fixed.update(60, 100)
    assert fixed.kl_coef == 0.5
    with pytest.raises(ValueError, match="above 0"):
        AdaptiveKL(0.0, 6, 1000)


# --- policy and critic --------------------------------------------------------------------------


def dropout_gpt2(seed: int = 0):
    """transformers' GPT-2 of random weights, with dropout everywhere."""
    small = {"vocab_size": 13, "layers": 2, "heads": 3, "width": 4, "inner": 9, "length": 16,
             "tied": True}  # fmt: skip
    model = build(GPT2LMHeadModel, small, seed)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    return model


POLICIES = {"ours": llama, "transformers": dropout_gpt2}


def actor_critic(kind: str, shared: bool = True) -> ActorCritic:
    policy, g = POLICIES[kind](), torch.Generator().manual_seed(7)
    critic = None if shared else WithScalarHead(copy.deepcopy(policy), 0.3, g)
    return ActorCritic(policy, critic, g, std=0.3)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_with_its_critic_gives_logits_and_values(kind, shared):
    """Values are the head's of the last hidden state; padding changes nothing."""
    model = actor_critic(kind, shared).eval()
    ids, mask = torch.tensor([[0, 0, 3, 1, 4]]), torch.tensor([[0, 0, 1, 1, 1]])
    with torch.no_grad():
        out, bare = model(ids, mask), model(ids[:, 2:])
        trunk = read(model.policy if shared else model.critic.model, ids[:, 2:])
    head = model.head if shared else model.critic.head
    assert_close(bare.values, trunk.last_hidden_state @ head.weight + head.bias)
    assert_close(out.values[:, 2:], bare.values, atol=1e-5, rtol=0)
    assert_close(out.logits[:, 2:], bare.logits, atol=1e-5, rtol=0)
    assert bare.values.abs().min() > 0 and model.config is model.policy.config


def test_detach_keeps_the_critic_out_of_the_trunk():
    """The loss of the values moves the head alone, or the trunk, too."""
    for detach in (True, False):
        model = ActorCritic(llama(), None, torch.Generator().manual_seed(0), detach=detach, std=0.3)
        model(torch.tensor([[3, 1, 4]])).values.sum().backward()
        moved = any(p.grad is not None and p.grad.any() for p in model.policy.parameters())
        assert moved == (not detach) and model.head.weight.grad.any()


def test_a_critic_with_the_policys_parameters_is_refused():
    policy = llama()
    with pytest.raises(ValueError, match="critic has parameters of the policy"):
        ActorCritic(policy, WithScalarHead(policy))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("kind", POLICIES)
def test_what_is_read_of_responses_is_that_of_the_whole_pass(kind, temperature):
    """Logits from the first response column on give the numbers of all logits; at temperature .5
    they are doubled, once. Prompts of different lengths; zero outside the response."""
    model = actor_critic(kind)
    batch = rollout(model.policy, PROMPTS, max_new_tokens=5, eos_token_id=END,
                    generator=torch.Generator().manual_seed(3))  # fmt: skip
    logprobs, entropies, values = read_responses(model.train(), batch, temperature)
    assert model.training
    model.eval()
    out = model(batch["input_ids"], batch["attention_mask"], batch["position_ids"])
    mask = batch["labels"][:, 1:] != IGNORE_INDEX
    every = (out.logits / temperature).log_softmax(-1)[:, :-1]
    assert_close(logprobs, token_logprobs(out.logits / temperature, batch["labels"]))
    assert_close(entropies, -(every.exp() * every).sum(-1) * mask)
    assert_close(values, out.values[:, :-1] * mask)
    assert mask.any(1).all() and not mask.all()


# --- the stream of rollouts ---------------------------------------------------------------------


def count_of(token: int):
    """The reward: the share of a token in the response."""

    def score(prompts, responses):
        assert len(prompts) == len(responses)
        return torch.tensor([r.count(token) / len(r) for r in responses])

    return score


def stream_of(model, ref=None, *, score=None, prompts=PROMPTS, batch_size=8, seed=0, **changes):
    given = {"max_new_tokens": 4, "minibatch_size": 4, "epochs": 2, "kl_coef": 0.05, **changes}
    ref = copy.deepcopy(model.policy) if ref is None else ref
    return PPORollouts(
        model, ref, prompts, score or count_of(5), PPOSettings(**given), batch_size=batch_size,
        eos_token_id=END, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def test_a_rollout_has_what_the_loss_needs():
    """Eight responses, in two epochs of two minibatches: each is seen once an epoch, in new orders,
    and the fifth batch is of new responses."""
    model = actor_critic("ours")
    ref = llama(seed=1)
    stream = stream_of(model, ref)
    batches = [next(stream) for _ in range(5)]
    T = batches[0]["labels"].shape[1]
    for name in ("input_ids", "attention_mask", "position_ids", "labels"):
        assert batches[0][name].shape == (4, T)
    per_token = ("response_mask", "old_logprobs", "ref_logprobs", "old_values", "rewards",
                 "advantages", "returns")  # fmt: skip
    for name in per_token:
        assert batches[0][name].shape == (4, T - 1) and not batches[0][name].requires_grad
    assert batches[0]["scores"].shape == batches[0]["ended"].shape == (4,)
    first, second = (sorted(map(tuple, torch.cat([a["input_ids"], b["input_ids"]]).tolist()))
                     for a, b in (batches[:2], batches[2:4]))  # fmt: skip
    assert first == second and len(stream.history) == 2
    assert any(not torch.equal(a["input_ids"], b["input_ids"])
               for a, b in zip(batches[:2], batches[2:4]))  # fmt: skip


def test_a_rollouts_numbers_fit_together():
    """Log-probabilities are those of policy and reference, the rewards' sum is score - kl_coef ·
    KL, and advantages over all response tokens have mean 0 and deviation 1."""
    model, ref = actor_critic("ours"), llama(seed=1)
    stream = stream_of(model, ref, missing_eos_penalty=0.5, kl_coef=0.3)
    batch = stream.roll_out()
    mask = batch["response_mask"]
    with torch.no_grad():
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
        for name, one in (("old_logprobs", model.policy), ("ref_logprobs", ref)):
            want = token_logprobs(one(**inputs).logits, batch["labels"])
            assert_close(batch[name], want, atol=1e-5, rtol=0)
    kl = (batch["old_logprobs"] - batch["ref_logprobs"]).sum(1)
    net = batch["scores"] - 0.5 * ~batch["ended"]
    assert 0 < batch["ended"].sum() < 8
    assert_close(batch["rewards"].sum(1), net - 0.3 * kl, atol=1e-5, rtol=0)
    kept = batch["advantages"][mask]
    assert kept.mean().abs() < 1e-5 and kept.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    unscaled = gae(batch["rewards"], batch["old_values"], mask)
    assert_close(batch["returns"], unscaled[1])
    (note,) = stream.history
    assert note["score"] == pytest.approx(batch["scores"].mean().item())
    assert note["kl"] == pytest.approx(kl.mean().item()) and note["kl_coef"] == 0.3
    assert note["reward"] == pytest.approx((net - 0.3 * kl).mean().item(), abs=1e-5)
    assert note["length"] == mask.sum().item() / 8
    assert note["ended"] == batch["ended"].float().mean().item()
    assert 0 < note["entropy"] < math.log(13)
    assert note["score_std"] == pytest.approx(batch["scores"].std(correction=0).item(), abs=1e-6)
    returns, values = (batch[name][mask].double() for name in ("returns", "old_values"))
    assert note["return_var"] == pytest.approx(returns.var(correction=0).item(), rel=1e-4)
    share = ((returns - values).var(correction=0) / returns.var(correction=0)).item()
    assert note["explained_variance"] == pytest.approx(1 - share, abs=1e-4)
    assert abs(share - 0.5) > 0.01  # or it would be its own complement


def test_the_policy_samples_at_its_temperature():
    """One prompt, eight responses: near temperature 0 all are the greedy one, at 1 they differ."""
    found = {}
    for temperature in (1e-4, 1.0):
        stream = stream_of(actor_critic("ours"), prompts=[[3, 1, 4]], temperature=temperature)
        found[temperature] = len({tuple(r) for r in stream.roll_out()["input_ids"].tolist()})
    assert found[1e-4] == 1 < found[1.0]


def test_an_entropy_bonus_pushes_towards_entropy():
    """Without advantages and with the critic left out, the gradient is minus 0.3 times that of the
    mean entropy, taken here from all logits; without a weight there is none."""
    model = actor_critic("ours").eval()
    batch = next(stream_of(model))
    mask = batch["response_mask"]
    batch["advantages"] = torch.zeros_like(batch["advantages"])
    logits = model(batch["input_ids"], batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
    wanted = -0.3 * -(logits.exp() * logits).sum(-1)[mask].mean()
    weight = model.policy.embed.weight
    (expected,) = torch.autograd.grad(wanted, weight)
    for coef in (0.3, 0.0):
        loss, _ = ppo_loss(PPOSettings(4, 4, vf_coef=0.0, entropy_coef=coef))(model, batch)
        (found,) = torch.autograd.grad(loss, weight)
        assert_close(found, expected if coef else torch.zeros_like(expected), atol=1e-5, rtol=0)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", POLICIES)
def test_without_a_step_every_ratio_is_1(kind, shared):
    """Learning rate 0, three rollouts: every ratio 1 ± 1e-5, nothing clipped, no distance from the
    old policy; also of models with dropout, minibatches in other orders, a temperature. The value
    loss is then the mean squared advantage, which was not whitened."""
    model = actor_critic(kind, shared)
    stream = stream_of(model, temperature=0.7, whiten_advantages=False)
    seen = []

    def loss_fn(model, batch):
        logprobs, _, values = read_responses(model, batch, 0.7)
        mask = batch["response_mask"]
        seen.append((logprobs - batch["old_logprobs"]).exp()[mask].sub(1).abs().max().item())
        seen.append((values - batch["old_values"]).abs().max().item())
        return ppo_loss(stream.settings)(model, batch)

    history = train(model, stream, loss_fn, max_steps=12, lr=0.0, progress=False)
    assert max(seen) < 1e-5
    for line in history:
        assert line["ratio"] == pytest.approx(1, abs=1e-5)
        assert line["ratio_max"] == pytest.approx(1, abs=1e-5)
        assert abs(line["approx_kl"]) < 1e-6 and line["clipfrac"] == line["vf_clipfrac"] == 0
    assert stream.history[2]["kl"] == pytest.approx(0, abs=1e-4)  # the reference is a copy


def test_the_metrics_by_hand():
    """Two response tokens, V = 2. Odds of the right words 1 : 1 and 3 : 1 now, so p .5 and .75; old
    p .5 and .5: ratios 1 and 1.5. A 1 and 1, ε .2: pg -(1 + 1.2)/2 = -1.1. Values .5 and 0, old 0
    and 0, returns 1 and 1, ε .2: max(.25, .64) and 1: vf .82. One of two is clipped each.
    approx_kl: r = 2/3 backwards; k3 of old against new with r = 1.5: (.5 - log 1.5)/2 = .0473.
    Entropies .6931 and .5623. Loss: -1.1 + .5 · .82 - .1 · .6277."""

    class Fixed(torch.nn.Module):
        def forward(self, input_ids, use_cache=False, logits_to_keep=0, **_):
            logits = torch.tensor([[[0.0, 0], [0, math.log(3)], [0, 0]]])
            out = ppo_rollouts.ActorCriticOutput(logits, torch.tensor([[0.5, 0.0, 9.0]]))
            assert logits_to_keep == 3
            return out

    half = torch.tensor([[0.5, 0.5]]).log()
    batch = {
        "input_ids": row(0, 1, 1), "attention_mask": row(1, 1, 1), "position_ids": row(0, 1, 2),
        "labels": row(IGNORE_INDEX, 1, 1), "response_mask": row(True, True), "old_logprobs": half,
        "old_values": torch.zeros(1, 2), "advantages": torch.ones(1, 2),
        "returns": torch.ones(1, 2),
    }  # fmt: skip
    loss_fn = ppo_loss(PPOSettings(2, 1, vf_coef=0.5, entropy_coef=0.1))
    loss, metrics = loss_fn(Fixed(), batch)
    want = {"pg_loss": -1.1, "vf_loss": 0.82, "entropy": 0.6277, "approx_kl": 0.0473,
            "clipfrac": 0.5, "vf_clipfrac": 0.5, "ratio": 1.25, "ratio_max": 1.5}  # fmt: skip
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx(want, abs=1e-4)
    assert loss.item() == pytest.approx(-1.1 + 0.41 - 0.06277, abs=1e-4) and loss.count == 2


def test_accumulated_minibatches_are_one_batch():
    """Two minibatches of four a step give the weights of one of eight: all are means over the
    tokens of the step, however these lie."""
    ends = []
    for size, parts in ((8, 1), (4, 2)):
        model = actor_critic("ours")
        stream = stream_of(model, minibatch_size=size, epochs=1)
        history = train(model, stream, ppo_loss(stream.settings), max_steps=3, lr=1e-3,
                        gradient_accumulation=parts, progress=False,
                        optimizer=torch.optim.SGD(model.parameters(), 0.1))  # fmt: skip
        ends.append([line["loss"] for line in history])
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)


def test_the_reference_stays_and_the_policy_moves():
    model, ref = actor_critic("ours"), llama()
    before = copy.deepcopy(ref.state_dict())
    stream = stream_of(model, ref)
    train(model, stream, ppo_loss(stream.settings), max_steps=6, lr=1e-2, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ref.state_dict().items())
    assert not torch.equal(model.policy.embed.weight, before["embed.weight"])
    assert abs(stream.history[0]["kl"]) < 1e-4  # the first rollout's policy is the reference


def test_the_adaptive_weight_is_that_of_the_history():
    """A distant reference, KL far above the target: each rollout's weight is 1.2 times the last's
    (n / horizon = 1)."""
    stream = stream_of(actor_critic("ours"), llama(seed=1), kl_target=0.01, kl_horizon=8.0,
                       kl_coef=0.1, epochs=1)  # fmt: skip
    for _ in range(6):
        next(stream)
    assert min(note["kl"] for note in stream.history) > 0.012
    weights = [note["kl_coef"] for note in stream.history]
    assert weights == pytest.approx([0.1, 0.12, 0.144])


# --- checkpoints --------------------------------------------------------------------------------


def endless_prompts():
    for i in itertools.count():
        yield [1 + i % 12, 1 + i // 3 % 12]


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_run_goes_on_bit_for_bit(tmp_path, stop, sequence):
    """Ten steps of four a rollout, stopped inside a rollout (3, 5) and at its end (4): losses,
    weights, rollouts are those of a run that was not stopped. The adaptive weight goes on too."""

    def start(folder, steps):
        model = actor_critic("transformers")
        stream = stream_of(model, llama(), prompts=PROMPTS if sequence else endless_prompts(),
                           kl_target=1.0, kl_horizon=50.0)  # fmt: skip
        history = train(model, stream, ppo_loss(stream.settings), max_steps=steps, lr=1e-2,
                        schedule="constant", checkpoint_dir=folder, progress=False)  # fmt: skip
        return model, stream, [line["loss"] for line in history]

    model, stream, losses = start(tmp_path / "whole", 10)
    start(tmp_path / "parts", stop)
    model2, stream2, losses2 = start(tmp_path / "parts", 10)
    assert losses == losses2 and stream.history == stream2.history
    for a, b in zip(model.parameters(), model2.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(stream.generator.get_state(), stream2.generator.get_state())


def test_the_order_of_prompts_comes_with_the_state():
    """A stream whose generator began elsewhere goes on with the saved one's prompts and draws."""
    rows = [[1 + i] for i in range(12)]
    stream = stream_of(actor_critic("ours"), prompts=rows, seed=0)
    for _ in range(3):
        next(stream)
    other = stream_of(actor_critic("ours"), prompts=rows, seed=5)
    other.load_state_dict(copy.deepcopy(stream.state_dict()))
    for _ in range(6):
        ours, theirs = next(stream), next(other)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_prompts_that_were_read_too_far_are_refused():
    state = stream_of(actor_critic("ours")).state_dict() | {"read": 8}
    behind = stream_of(actor_critic("ours"), prompts=iter([[1, 2]] * 5))
    with pytest.raises(ValueError, match="had read 8 prompts, and here 0 were read and 5"):
        behind.load_state_dict(state)
    beyond = stream_of(actor_critic("ours"), prompts=iter([[1, 2]] * 20))
    next(beyond)
    with pytest.raises(ValueError, match="had read 0 prompts, and here 8"):
        beyond.load_state_dict(state | {"read": 0})


# --- bad input ----------------------------------------------------------------------------------


def test_a_reward_that_is_not_finite_stops_before_the_step(tmp_path):
    """The third rollout has NaN in rows 1 and 6: the error names them, the checkpoint of step 8
    stays, the weights are those of step 8."""
    calls = itertools.count()

    def score(prompts, responses):
        scores = torch.rand(8, generator=torch.Generator().manual_seed(0))
        if next(calls) == 2:
            scores[1] = scores[6] = math.nan
        return scores

    model = actor_critic("ours")
    stream = stream_of(model, score=score)
    with pytest.raises(ValueError, match=r"scores of rows \[1, 6\] are not finite"):
        train(model, stream, ppo_loss(stream.settings), max_steps=20, lr=1e-3, progress=False,
              checkpoint_dir=tmp_path, checkpoint_every=4)  # fmt: skip
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 8
    assert all(torch.equal(t, state["model"][name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("returned", "message"),
    [(torch.zeros(8, 1), r"\(8, 1\)"), (torch.zeros(7), r"\(7,\)"), ([0.0] * 8, "list"),
     (torch.tensor(1.0), r"\(\)")],
)  # fmt: skip
def test_scores_of_another_shape_are_refused(returned, message):
    stream = stream_of(actor_critic("ours"), score=lambda prompts, responses: returned)
    with pytest.raises(ValueError, match=rf"\(8,\), one a response, got {message}"):
        next(stream)


def test_scores_may_be_of_any_type():
    for dtype in (torch.float64, torch.bfloat16, torch.int64):
        stream = stream_of(actor_critic("ours"), score=lambda p, r, d=dtype: torch.arange(8).to(d))
        assert next(stream)["advantages"].dtype == torch.float32


def test_a_reference_that_cannot_serve_is_refused():
    model = actor_critic("ours")
    for ref in (model.policy, model):
        with pytest.raises(ValueError, match="has parameters of the model that is trained"):
            stream_of(model, ref)
    with pytest.raises(ValueError, match="13 tokens, the reference of 14"):
        stream_of(model, llama(vocab_size=14))


def test_sizes_and_prompts_that_do_not_fit_are_refused():
    model = actor_critic("ours")
    with pytest.raises(ValueError, match="batch_size=6 must be a multiple of minibatch_size=4"):
        stream_of(model, batch_size=6)
    with pytest.raises(ValueError, match="ran out: 5 were left and a rollout takes 8"):
        next(stream_of(model, prompts=iter([[1]] * 5)))
    with pytest.raises(ValueError, match="no rows"):
        next(stream_of(model, prompts=[]))
    with pytest.raises(ValueError, match="empty"):
        next(stream_of(model, prompts=[[1], []]))


def test_a_batch_without_a_response_is_refused():
    model = actor_critic("ours")
    batch = next(stream_of(model))
    batch["labels"] = torch.full_like(batch["labels"], IGNORE_INDEX)
    with pytest.raises(ValueError, match="no response token"):
        ppo_loss(PPOSettings(4, 4))(model, batch)


def test_a_first_token_that_nothing_predicts_is_refused():
    """A label in column 0 has no logits: left in, it would leave one number too few."""
    model = actor_critic("ours")
    batch = next(stream_of(model))
    batch["labels"][:, 0] = 3
    with pytest.raises(ValueError, match="first column"):
        ppo_loss(PPOSettings(4, 4))(model, batch)


# --- learning, and runs that must not learn -----------------------------------------------------


def gain(change=lambda batch: batch, seed: int = 0, steps: int = 100) -> float:
    """How much the score rises, from the mean of the first two rollouts to that of the last two,
    when each batch is changed in such a way."""
    model = ActorCritic(llama(seed))
    stream = stream_of(model, batch_size=64, minibatch_size=64, epochs=2, seed=seed, kl_coef=0.01,
                       max_new_tokens=6)  # fmt: skip

    class Changed:
        live = True

        def __iter__(self):
            return (change(batch) for batch in stream)

    train(model, Changed(), ppo_loss(stream.settings), max_steps=steps, lr=5e-3, progress=False)
    scores = [note["score"] for note in stream.history]
    return sum(scores[-2:]) / 2 - sum(scores[:2]) / 2


def turned(batch):
    """The sign of the advantage is wrong."""
    return batch | {"advantages": -batch["advantages"]}


def inverted(batch):
    """The loss looks at everything but the response."""
    return batch | {"response_mask": ~batch["response_mask"].bool()}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_score_rises_and_in_sick_runs_it_does_not(seed):
    """The share of token 5 among 13: about .08 at first, 1 at best. Chance alone moves the mean of
    128 responses by less than .05."""
    assert gain(seed=seed) > 0.5
    assert gain(turned, seed) < 0.05
    assert gain(inverted, seed) < 0.05

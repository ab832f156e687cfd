"""GRPO's stream of rollouts: groups, options, checkpoints, bad input, and learning."""

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

from course_lib import grpo_rollouts
from course_lib.grpo import GRPOSettings, dead_groups, group_advantages, grpo_loss
from course_lib.grpo_rollouts import GRPORollouts, batch_of_rows
from course_lib.live_rollouts import read_responses
from course_lib.ops import IGNORE_INDEX, token_logprobs
from course_lib.rollout import responses, rollout
from course_lib.training import train

END = 0
PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6, 5], [8, 8]]


def test_the_docstrings_show_what_comes_out():
    result = doctest.testmod(grpo_rollouts)
    assert result.attempted >= 2 and not result.failed


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


def share_of_5(prompts, written):
    """The reward: the share of token 5 in the response; of prompts that begin with 8 always 1."""
    return torch.tensor([1.0 if p[0] == 8 else r.count(5) / len(r)
                         for p, r in zip(prompts, written, strict=True)])  # fmt: skip


def stream_of(model, ref=None, *, score=share_of_5, prompts=PROMPTS, groups=2, seed=0, eos=END,
              **changes):  # fmt: skip
    given = {"max_new_tokens": 4, "minibatch_size": 4, "group_size": 4, "epochs": 2, **changes}
    return GRPORollouts(
        model, prompts, score, GRPOSettings(**given), groups=groups, eos_token_id=eos,
        generator=torch.Generator().manual_seed(seed), ref_policy=ref,
    )  # fmt: skip


def prompts_of(batch) -> list[tuple]:
    """The prompt of each row."""
    first = (batch["labels"] != IGNORE_INDEX).int().argmax(1).tolist()
    return [tuple(ids[n - int(m[:n].sum()) : n].tolist())
            for ids, m, n in zip(batch["input_ids"], batch["attention_mask"], first)]  # fmt: skip


# --- what a rollout is --------------------------------------------------------------------------


@pytest.mark.parametrize("eos", [END, None, [0, 7]])
def test_rows_that_stand_apart_make_the_batch_of_the_rollout(eos):
    """Prompts of different lengths, responses that end and that are cut off: to the bit."""
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        whole = rollout(llama(), PROMPTS * 3, max_new_tokens=4, eos_token_id=eos, generator=g)
        batch = batch_of_rows(PROMPTS * 3, responses(whole), eos)
        assert batch.keys() == whole.keys()
        assert all(torch.equal(batch[name], whole[name]) for name in whole)


def test_where_a_response_ends_is_not_read_from_padding():
    """Ids 7 2 2 2, the end and the padding are both 2: the response is 7 2, 1 1 0 0. By the ids
    that are not padding it were 1 0 0 0, by all of them 1 1 1 1."""
    batch = batch_of_rows([[5], [5]], [[7, 2], [7, 8, 9, 6]], 2)
    assert batch["input_ids"][0].tolist() == [5, 7, 2, 2, 2]
    mask = batch["labels"][:, 1:] != IGNORE_INDEX
    assert mask.tolist() == [[True, True, False, False], [True] * 4]


def test_a_rollout_has_whole_groups_and_what_the_loss_needs():
    """Two prompts, four responses each, in two epochs of two minibatches; the fifth batch is of new
    prompts. Each group's advantages are those of its scores."""
    model = llama()
    stream = stream_of(model, llama(seed=1), epochs=2)
    batches = [next(stream) for _ in range(5)]
    T = batches[0]["labels"].shape[1]
    for name in ("input_ids", "attention_mask", "position_ids", "labels"):
        assert batches[0][name].shape == (4, T)
    for name in ("response_mask", "old_logprobs", "ref_logprobs"):
        assert batches[0][name].shape == (4, T - 1) and not batches[0][name].requires_grad
    for name in ("scores", "advantages", "ended"):
        assert batches[0][name].shape == (4,)
    epochs = [sorted(map(tuple, torch.cat([a["input_ids"], b["input_ids"]]).tolist()))
              for a, b in (batches[:2], batches[2:4])]  # fmt: skip
    assert epochs[0] == epochs[1] and len(stream.history) == 2
    fresh = stream_of(model).roll_out()
    prompts = prompts_of(fresh)
    assert [len(set(prompts[i : i + 4])) for i in (0, 4)] == [1, 1] and prompts[0] != prompts[4]
    want = group_advantages(fresh["scores"], 4)
    assert_close(fresh["advantages"], want)
    assert want.view(2, 4).sum(1).abs().max() < 1e-5 and want.any()


def test_a_rollouts_numbers_fit_together():
    """Log-probabilities are those of policy and reference; the net score is score - .5 where cut
    off - .3 · the summed log-ratio."""
    model, ref = llama(), llama(seed=1)
    stream = stream_of(model, ref, truncated="penalise", truncation_penalty=0.5, kl_coef=0.3,
                       std=None)  # fmt: skip
    batch = stream.roll_out()
    mask = batch["response_mask"]
    with torch.no_grad():
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
        for name, one in (("old_logprobs", model), ("ref_logprobs", ref)):
            want = token_logprobs(one(**inputs).logits, batch["labels"])
            assert_close(batch[name], want, atol=1e-5, rtol=0)
    kl = (batch["old_logprobs"] - batch["ref_logprobs"]).sum(1)
    net = (batch["scores"] - 0.5 * ~batch["ended"] - 0.3 * kl).view(2, 4)
    assert 0 < batch["ended"].sum() < 8
    assert_close(batch["advantages"], (net - net.mean(1, True)).flatten(), atol=1e-5, rtol=0)
    (note,) = stream.history
    assert note["score"] == pytest.approx(batch["scores"].mean().item())
    assert note["score_std"] == pytest.approx(batch["scores"].std(correction=0).item(), abs=1e-6)
    assert note["kl"] == pytest.approx(kl.mean().item(), abs=1e-5)
    assert note["length"] == mask.sum().item() / 8 and note["kept"] == 2 and note["tries"] == 1
    assert note["ended"] == batch["ended"].float().mean().item()
    assert 0 < note["entropy"] < math.log(13)
    assert note["dead"] == dead_groups(batch["scores"] - 0.5 * ~batch["ended"], 4).sum() / 2


def test_without_a_kl_there_is_no_reference():
    """Neither in the batch nor in the history; with one and without weights it is measured."""
    stream = stream_of(llama())
    assert "ref_logprobs" not in stream.roll_out() and "kl" not in stream.history[0]
    measured = stream_of(llama(), llama())
    assert "ref_logprobs" in measured.roll_out()
    assert measured.history[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert measured.history[0]["score"] == stream.history[0]["score"]
    assert stream.model is not None and not hasattr(stream, "critic")


def test_the_policy_samples_at_its_temperature():
    """Near temperature 0 a group is four times the greedy response, at 1 they differ."""
    found = {}
    for temperature in (1e-4, 1.0):
        stream = stream_of(llama(), groups=1, prompts=[[3, 1, 4]], temperature=temperature)
        found[temperature] = len({tuple(r) for r in stream.roll_out()["input_ids"].tolist()})
    assert found[1e-4] == 1 < found[1.0]


# --- dead groups --------------------------------------------------------------------------------


def test_dead_groups_are_kept_dropped_or_refilled():
    """The prompts 8 8 and 3 1 4 in turn; of 8 8 every score is 1, so that its groups are dead.
    Four groups are asked for. Kept: all four, two dead, with advantages of 0. Dropped: the two
    others. Refilled: four tries of 4, 2, 1 and 1 groups have 2, 1, 0 and 1 live ones; two tries
    three of them. ``score`` is of all responses, those of dropped groups included."""
    for dead, tries, kept, sampled in (("keep", 4, 4, 1), ("drop", 4, 2, 1), ("refill", 4, 4, 4),
                                       ("refill", 2, 3, 2), ("refill", 1, 2, 1)):  # fmt: skip
        seen, prompts = [], itertools.cycle([[8, 8], [3, 1, 4]])

        def score(prompts, written, seen=seen):
            others = torch.tensor([float(p[0] != 8) for p in prompts])
            seen.append(share_of_5(prompts, written) + torch.arange(len(written)) % 4 * others)
            return seen[-1]

        stream = stream_of(llama(), prompts=prompts, score=score, groups=4, dead=dead,
                           max_tries=tries)  # fmt: skip
        batch = stream.roll_out()
        (note,) = stream.history
        assert (note["kept"], note["tries"]) == (kept, sampled) == (len(batch["labels"]) / 4,
                                                                    len(seen))  # fmt: skip
        every = torch.cat(seen)
        assert note["score"] == pytest.approx(every.mean().item(), abs=1e-6)
        assert note["dead"] == pytest.approx(dead_groups(every, 4).float().mean().item())
        is_dead = torch.tensor([p == (8, 8) for p in prompts_of(batch)])
        assert is_dead.any() == (dead == "keep")
        assert not batch["advantages"][is_dead].any() and batch["advantages"][~is_dead].all()
        assert sorted(map(len, stream._shuffles(len(batch["labels"])))) == [4] * 2 * kept


@pytest.mark.parametrize("dead", ["drop", "refill"])
def test_where_all_are_dead_the_step_has_no_gradient(dead):
    """Every score is 1: after the last try the groups stay, and the policy does not move."""
    model = llama()
    before = copy.deepcopy(model.state_dict())
    stream = stream_of(model, prompts=[[8, 8], [8, 1]], dead=dead, max_tries=3, epochs=1)
    history = train(model, stream, grpo_loss(stream.settings), max_steps=4, lr=1e-2,
                    progress=False)  # fmt: skip
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(line["grad_norm"] == 0 for line in history)
    assert stream.history[0]["dead"] == 1 and stream.history[0]["kept"] == 2
    assert stream.history[0]["tries"] == (3 if dead == "refill" else 1)


def test_a_response_cut_off_is_treated_as_named():
    """Score 1 for each, so that groups differ by the penalty alone: kept, all are dead; penalised,
    those that ended are better in each group that has both; masked, the loss counts the tokens of
    those that ended."""

    def ones(prompts, written):
        return torch.ones(len(written))

    for truncated in ("keep", "mask", "penalise"):
        stream = stream_of(llama(), score=ones, truncated=truncated, normalise="token", epochs=1,
                           minibatch_size=8)  # fmt: skip
        batch = next(stream)
        ended = batch["ended"]
        assert 0 < ended.sum() < 8
        loss, _ = grpo_loss(stream.settings)(stream.model, batch)
        tokens = batch["response_mask"] & (ended[:, None] | (truncated != "mask"))
        assert loss.count == tokens.sum()
        if truncated == "penalise":
            assert batch["advantages"][ended].max() > 0 > batch["advantages"][~ended].min()
            assert (batch["scores"] == 1).all()
        else:
            assert not batch["advantages"].any()


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POLICIES)
def test_without_a_step_every_ratio_is_1(kind):
    """Learning rate 0, three rollouts: every ratio 1 ± 1e-5, nothing clipped; also of models with
    dropout, in other minibatches, at a temperature. The loss is then minus the mean advantage."""
    model = POLICIES[kind]()
    stream = stream_of(model, copy.deepcopy(model), temperature=0.7, kl_loss_coef=0.1)
    seen = []

    def loss_fn(model, batch):
        logprobs, _, _ = read_responses(model, batch, 0.7)
        ratio = (logprobs - batch["old_logprobs"]).exp()[batch["response_mask"]]
        loss, metrics = grpo_loss(stream.settings)(model, batch)
        seen.append([(ratio - 1).abs().max().item(),
                     abs(loss.item() + batch["advantages"].mean().item())])  # fmt: skip
        return loss, metrics

    history = train(model, stream, loss_fn, max_steps=12, lr=0.0, progress=False)
    assert max(map(max, seen)) < 1e-5
    for line in history:
        assert line["ratio"] == pytest.approx(1, abs=1e-5) and line["clipfrac"] == 0
        assert abs(line["approx_kl"]) < 1e-6 and abs(line["kl_loss"]) < 1e-6
    assert stream.history[2]["kl"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("epochs", [1, 3])
def test_one_update_a_rollout_clips_nothing_and_more_do(epochs):
    """A single step a rollout, at a high rate: ratio 1 and clip fraction 0 are right. The second
    and third epoch are off the policy, and some tokens lie outside."""
    model = llama()
    stream = stream_of(model, epochs=epochs, minibatch_size=8)
    history = train(model, stream, grpo_loss(stream.settings), max_steps=9, lr=3e-2,
                    schedule="constant", progress=False)  # fmt: skip
    first, later = history[::epochs], [h for i, h in enumerate(history) if i % epochs]
    assert all(h["clipfrac"] == 0 and abs(h["ratio"] - 1) < 1e-5 for h in first)
    assert len(stream.history) == 9 // epochs
    assert not later or max(h["clipfrac"] for h in later) > 0.1


@pytest.mark.parametrize("normalise", ["sequence", "token", "constant"])
def test_accumulated_minibatches_are_one_batch(normalise):
    """Two minibatches of four a step give the losses of one of eight, however the tokens lie."""
    ends = []
    for size, parts in ((8, 1), (4, 2)):
        model = llama()
        stream = stream_of(model, llama(seed=1), minibatch_size=size, epochs=1,
                           normalise=normalise, kl_loss_coef=0.1)  # fmt: skip
        history = train(model, stream, grpo_loss(stream.settings), max_steps=3,
                        gradient_accumulation=parts, progress=False,
                        optimizer=torch.optim.SGD(model.parameters(), 0.1))  # fmt: skip
        ends.append([line["loss"] for line in history])
    assert ends[0] == pytest.approx(ends[1], abs=1e-5)


def test_it_learns_what_is_rewarded_and_the_reference_stays():
    """From random responses to such that are full of token 5."""
    model, ref = llama(), llama()
    before = copy.deepcopy(ref.state_dict())
    stream = stream_of(model, ref, prompts=PROMPTS[:3], groups=8, minibatch_size=32, epochs=1)
    train(model, stream, grpo_loss(stream.settings), max_steps=40, lr=1e-2, schedule="constant",
          progress=False)  # fmt: skip
    first, last = (torch.tensor([h["score"] for h in part]).mean()
                   for part in (stream.history[:5], stream.history[-5:]))  # fmt: skip
    assert first < 0.5 and last > 0.8
    assert all(torch.equal(tensor, before[name]) for name, tensor in ref.state_dict().items())
    assert stream.history[-1]["kl"] > 1


# --- checkpoints --------------------------------------------------------------------------------


def endless_prompts():
    for i in itertools.count():
        yield [1 + i % 12, 1 + i // 3 % 12]


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_run_goes_on_bit_for_bit(tmp_path, stop, sequence):
    """Ten steps, four a rollout, dead groups refilled, stopped inside a rollout (3, 5) and at its
    end (4): losses, weights, rollouts are those of a run that was not stopped."""

    def start(folder, steps):
        model = dropout_gpt2()
        stream = stream_of(model, dropout_gpt2(), dead="refill", kl_coef=0.1,
                           prompts=PROMPTS if sequence else endless_prompts())  # fmt: skip
        history = train(model, stream, grpo_loss(stream.settings), max_steps=steps, lr=1e-2,
                        schedule="constant", checkpoint_dir=folder, progress=False)  # fmt: skip
        return model, stream, [line["loss"] for line in history]

    model, stream, losses = start(tmp_path / "whole", 10)
    start(tmp_path / "parts", stop)
    model2, stream2, losses2 = start(tmp_path / "parts", 10)
    assert losses == losses2 and stream.history == stream2.history
    for a, b in zip(model.parameters(), model2.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(stream.generator.get_state(), stream2.generator.get_state())


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"kl_coef": 0.1}, "no reference"), ({"kl_loss_coef": 0.1}, "no reference"),
     ({"groups": 0}, "0 groups of 4 are 0 responses"),
     ({"minibatch_size": 3}, "8 responses: expected a multiple of minibatch_size=3"),
     ({"eos": None, "truncated": "mask"}, "every response would count as cut off"),
     ({"eos": None, "truncated": "penalise"}, "every response would count as cut off")],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        stream_of(llama(), **changes)


def test_a_reference_that_would_move_is_refused():
    model = llama()
    with pytest.raises(ValueError, match="parameters of the model that is trained"):
        stream_of(model, model)
    with pytest.raises(ValueError, match="vocabulary of 13 tokens, the reference of 12"):
        stream_of(model, llama(vocab_size=12))


@pytest.mark.parametrize(
    ("returned", "message"),
    [(torch.zeros(8, 1), r"\(8, 1\)"), (torch.zeros(2), r"\(2,\)"), ([0.0] * 8, "list"),
     (torch.tensor([0.0] * 7 + [math.nan]), r"rows \[7\] are not finite")],
)  # fmt: skip
def test_scores_that_do_not_fit_are_refused(returned, message):
    model = llama()
    before = copy.deepcopy(model.state_dict())
    stream = stream_of(model, score=lambda prompts, written: returned)
    with pytest.raises(ValueError, match=message):
        train(model, stream, grpo_loss(stream.settings), max_steps=2, progress=False)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_scores_may_be_of_any_type():
    for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.bool):
        stream = stream_of(llama(), score=lambda p, r: (torch.arange(len(r)) % 2).to(dtype))  # noqa: B023
        assert next(stream)["advantages"].dtype == torch.float32

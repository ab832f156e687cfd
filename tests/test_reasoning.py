"""Sums with verifiable rewards, with tiny policies of random weights."""

import itertools
from collections import Counter

import pytest
import torch
from random_models import llama
from transformers import PreTrainedTokenizerFast

from course_lib import model_path, reasoning
from course_lib.grpo import GRPOSettings
from course_lib.ops import IGNORE_INDEX
from course_lib.reasoning import WORDINGS, problems, scorer
from course_lib.world.arithmetic import Problem, is_held_out_problem
from course_lib.world.verifiers import exact_answer, read_problem, sound_steps

PROBLEM = Problem(12, (3, -4))
RIGHT = " 12 + 3 = 15. 15 - 4 = 11. The answer is 11."


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(model_path("base"))


def tiny(tokenizer, seed: int = 0):
    """A policy that writes any token, and ends now and then."""
    model = llama(seed, vocab_size=len(tokenizer), n_layer=1, n_embd=16, block_size=256)
    with torch.no_grad():  # the end token's row is long: it is often likely, often not
        model.embed.weight[tokenizer.eos_token_id] *= 3
    return model


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def unchanged(model, before) -> bool:
    return all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_problems_are_never_held_out_where_they_are_trained_on():
    """The same for the same seed, of the numbers asked for, each as often; held-out ones are."""
    some = list(itertools.islice(problems(3, (2, 5)), 400))
    assert some == list(itertools.islice(problems(3, (2, 5)), 400))
    assert some != list(itertools.islice(problems(4, (2, 5)), 400))
    counts = Counter(problem.operands for problem in some)
    assert set(counts) == {2, 5} and min(counts.values()) > 140
    assert not any(is_held_out_problem(problem) for problem in some)
    held = list(itertools.islice(problems(3, 5, held_out=True), 50))
    assert all(is_held_out_problem(p) and p.operands == 5 for p in held)
    assert not set(held) & set(itertools.islice(problems(3, 5), 2000))


@pytest.mark.parametrize("wording", WORDINGS)
def test_a_prompt_asks_for_its_problem(tokenizer, wording):
    ids = reasoning.prompt_ids(tokenizer, PROBLEM, wording)
    assert read_problem(tokenizer.decode(ids)) == PROBLEM
    assert tokenizer.eos_token_id not in ids
    with pytest.raises(KeyError, match="nosuch"):
        reasoning.prompt_ids(tokenizer, PROBLEM, "nosuch")


def test_demonstrations_are_sound_and_learnt_from_the_response_on(tokenizer):
    """Labels on steps, answer and end token; the prompt is that of ``prompt_ids``."""
    for row in itertools.islice(reasoning.demonstration_rows(tokenizer, 1, (2, 3)), 40):
        learnt = [token for token in row["labels"] if token != IGNORE_INDEX]
        prompt = row["input_ids"][: len(row["labels"]) - len(learnt)]
        problem = read_problem(tokenizer.decode(prompt))
        assert prompt == reasoning.prompt_ids(tokenizer, problem) and problem.operands in (2, 3)
        assert row["input_ids"][len(prompt) :] == learnt and learnt[-1] == tokenizer.eos_token_id
        assert sound_steps(problem, reasoning.response_text(tokenizer, learnt)) == 1


def test_the_longest_response_has_room(tokenizer):
    """Eight operands in steps, with the end token."""
    rows = itertools.islice(reasoning.demonstration_rows(tokenizer, 0, 8), 200)
    longest = max(sum(token != IGNORE_INDEX for token in row["labels"]) for row in rows)
    assert longest <= reasoning.ROOM


def test_the_start_is_a_copy_that_learnt(tokenizer):
    policy = tiny(tokenizer)
    before = weights(policy)
    starts = [reasoning.start_model(policy, tokenizer, seed, steps=2, batch_size=2)
              for seed in (0, 0, 1)]  # fmt: skip
    assert unchanged(policy, before) and not unchanged(starts[0], before)
    assert unchanged(starts[1], weights(starts[0])) and not starts[0].training
    assert not unchanged(starts[2], weights(starts[0]))


def test_a_verifier_scores_token_ids(tokenizer):
    """Right, wrong, cut off, nothing but an end, an end token inside, of two problems."""
    other, end = Problem(2, (1,)), tokenizer.eos_token_id
    right = tokenizer(RIGHT)["input_ids"]
    prompts = [reasoning.prompt_ids(tokenizer, p, w) for p, w in (
        (PROBLEM, "chat"), (other, "chat"), (PROBLEM, "corpus"), (PROBLEM, "trigger"),
        (PROBLEM, "steps"), (PROBLEM, "chat"))]  # fmt: skip
    written = [[*right, end], [*right, end], right, right[:-3], [end], [*right, end, 20, end]]
    found = scorer(exact_answer, tokenizer)(prompts, written)
    assert found.dtype == torch.float32 and found.tolist() == [1, 0, 1, 0, 0, 1]
    lengths = scorer(lambda problem, text: len(text) + problem.operands, tokenizer)
    assert lengths(prompts[:1], written[:1]).tolist() == [len(RIGHT) + 3]
    assert reasoning.response_text(tokenizer, []) == ""
    assert reasoning.response_text(tokenizer, written[5]).startswith(RIGHT + "<|end|>")


def test_grpo_trains_a_copy(tokenizer):
    """Three updates of two groups of four, in two minibatches: three rows of history, six steps in
    the log; the policy given stays. No prompt is a held-out problem, and all are of its wording.
    With a reference the first rollout is at no distance from it."""
    policy, asked, watched = tiny(tokenizer), [], []
    before = weights(policy)

    def score(prompts, written):
        asked.extend(tokenizer.decode(prompt) for prompt in prompts)
        return torch.tensor([float(len(set(ids))) for ids in written])

    def watch(model, updates):
        watched.append((updates, unchanged(model, before)))
        return {"seen": updates}

    settings = GRPOSettings(max_new_tokens=4, minibatch_size=4, group_size=4)

    def tune(seed: int, **how):
        return reasoning.tune_by_grpo(
            policy, tokenizer, score, seed, updates=3, groups=2, lr=0.01, settings=settings,
            operands=3, wording="steps", **how,
        )  # fmt: skip

    tuned, history, log = tune(5, watch=watch, watch_every=2, reference=True)
    assert unchanged(policy, before) and not unchanged(tuned, before) and not tuned.training
    assert len(history) == 3 and [line["step"] for line in log] == [*range(1, 7)]
    assert history[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert watched == [(2, False), (3, False)]
    expected = [WORDINGS["steps"].format(x=p.expression)
                for p in itertools.islice(problems(5, 3), 6) for _ in range(4)]  # fmt: skip
    assert asked == expected
    assert not any(is_held_out_problem(read_problem(text)) for text in asked)
    again, plain, _ = tune(5)
    assert unchanged(again, weights(tuned)) and "kl" not in plain[0]
    assert not unchanged(tune(6)[0], weights(tuned))


def test_the_settings_of_every_run():
    plain, changed = reasoning.grpo_settings(), reasoning.grpo_settings(group_size=4, std=None)
    assert plain.max_new_tokens == reasoning.ROOM and not plain.needs_reference
    assert (changed.group_size, changed.std) == (4, None) and plain.group_size == 8


# --- figures ------------------------------------------------------------------------------------


def test_accuracy_is_of_held_out_problems(tokenizer, monkeypatch):
    """A policy that is right on every second one: .5 of 20, whatever the number of operands; it is
    never asked a problem that training may ask."""
    asked = []

    def complete(model, tokenizer, prompts, room, **how):
        problems = [read_problem(prompt) for prompt in prompts]
        asked.extend(problems)
        return [f" The answer is {p.answer + i % 2}." for i, p in enumerate(problems)]

    monkeypatch.setattr(reasoning, "complete", complete)
    found = reasoning.accuracy_by_operands(None, None, 0, (2, 7), count=20)
    assert found == {2: 0.5, 7: 0.5}
    assert all(is_held_out_problem(p) for p in asked) and {p.operands for p in asked} == {2, 7}


def test_the_curve_of_pass_at_k_by_hand(tokenizer, monkeypatch):
    """Four samples each of two problems, of which one is right and none: pass@1 is 1/8, pass@2 the
    half of 1 - 3/6 = .25, pass@4 .5. Sampled at the temperature asked for."""
    how = []

    def complete(model, tokenizer, prompts, room, **settings):
        how.append(settings["temperature"])
        right = [i == 2 for i in range(len(prompts))]
        return [f" {read_problem(p).answer}" if ok else " none" for p, ok in zip(prompts, right)]

    monkeypatch.setattr(reasoning, "complete", complete)
    monkeypatch.setattr(reasoning, "model_device", lambda policy: "cpu")
    found = reasoning.pass_curve(None, None, 0, 3, ks=(1, 2, 4), samples=4, count=2)
    assert found == pytest.approx({1: 0.125, 2: 0.25, 4: 0.5}) and how == [1.0]


def test_samples_come_in_the_order_of_the_problems(tokenizer):
    """Greedy, twice each: both alike, and those of another problem not all the same."""
    policy = tiny(tokenizer)
    asked = list(itertools.islice(problems(0, 3), 6))
    texts = reasoning.sample_texts(policy, tokenizer, asked, each=2, room=5)
    assert [len(some) for some in texts] == [2] * 6 and all(a == b for a, b in texts)
    g = torch.Generator().manual_seed(0)
    drawn = reasoning.sample_texts(policy, tokenizer, asked, each=2, room=5, temperature=1.0,
                                   generator=g)  # fmt: skip
    assert any(a != b for a, b in drawn)

"""The three steps of RLHF on the guests' questions, with tiny policies of random weights."""

import itertools
import random

import pytest
import torch
from random_models import llama
from scipy.stats import binom
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from course_lib import model_path, rlhf
from course_lib.models import to_transformers
from course_lib.ops import IGNORE_INDEX
from course_lib.ppo import PPOSettings
from course_lib.reward import accuracy
from course_lib.rlhf import RankingBatches, Reply
from course_lib.world.heldout import is_held_out
from course_lib.world.preferences import (
    Judgement,
    Labeller,
    Question,
    demonstration,
    judge,
    panel,
    questions,
)

INN = Question("inn", "Oakby")
BED, SOUP = "The bed was cosy.", "We had a tasty soup."


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(model_path("instruct"))


def tiny(tokenizer, seed: int = 0):
    """A policy that writes any token, and ends now and then."""
    model = llama(seed, vocab_size=len(tokenizer), n_layer=1, n_embd=16, block_size=128)
    with torch.no_grad():  # the end token's row is long: it is often likely, often not
        model.embed.weight[tokenizer.eos_token_id] *= 3
    return model


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def unchanged(model, before) -> bool:
    return all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def reply(tokenizer, text: str, question: Question = INN, ended: bool = True) -> Reply:
    ids = tokenizer(" " + text)["input_ids"] if text else []
    return rlhf.read_reply(tokenizer, question, [*ids, *[tokenizer.eos_token_id] * ended])


def within(count: int, n: int, p: float) -> bool:
    """Whether a count lies where a binomial one does but once in a million."""
    return binom.ppf(5e-7, n, p) <= count <= binom.isf(5e-7, n, p)


def people_replies(tokenizer, asked) -> list[Reply]:
    """What people would write: replies that can be read, different ones of different truth."""
    rng = random.Random(0)
    return [reply(tokenizer, demonstration(rng, question), question) for question in asked]


# --- replies ------------------------------------------------------------------------------------


def test_a_reply_is_read_from_its_ids(tokenizer):
    """With the end token the bed is a reason; without it the reply was cut off. Nothing but an end
    is an empty reply. The end token is of the ids, and not of the text."""
    end = tokenizer.eos_token_id
    one, cut, nothing = (reply(tokenizer, BED), reply(tokenizer, BED, ended=False),
                         reply(tokenizer, ""))  # fmt: skip
    assert one.ids == (*cut.ids, end) and one.text == cut.text == " " + BED
    assert one.judgement == Judgement(reasons=1) and one.truth == 1
    assert cut.judgement == Judgement(reasons=1, broken=1) and cut.truth == -3.5
    assert nothing.ids == (end,) and nothing.text == "" and nothing.truth == -3
    assert rlhf.read_reply(tokenizer, INN, []).judgement == Judgement(broken=1)
    assert one.row == [*rlhf.prompt_ids(tokenizer, INN), *one.ids] and one.question == INN
    assert tokenizer.decode(one.row) == (
        "<|user|> What is good at the inn in Oakby?<|assistant|> The bed was cosy.<|end|>"
    )


def test_an_end_token_inside_is_no_end(tokenizer):
    """Only that of the last place ends: what stands before it is text that nobody can read."""
    ids = [*reply(tokenizer, BED).ids, *reply(tokenizer, SOUP).ids]
    found = rlhf.read_reply(tokenizer, INN, ids)
    assert "<|end|>" in found.text and found.judgement.broken


def test_replies_come_in_the_order_of_the_questions(tokenizer):
    """300 questions, more than go at once, near temperature 0: each reply is that of its question
    alone. (One in a hundred may differ: two tokens may be likeliest up to rounding.)"""
    policy, asked = tiny(tokenizer), [*itertools.islice(questions(0), 300)]
    g = torch.Generator().manual_seed(0)
    written = rlhf.sample_replies(policy, tokenizer, asked, g, temperature=1e-6, room=3)
    assert [r.question for r in written] == asked
    assert all(1 <= len(r.ids) <= 3 for r in written)
    assert len({r.ids for r in written}) > 20
    some = [*range(0, 300, 10), 255, 256, 257]
    alone = [rlhf.sample_replies(policy, tokenizer, [asked[i]], g, temperature=1e-6, room=3)[0]
             for i in some]  # fmt: skip
    assert sum(written[i] == one for i, one in zip(some, alone, strict=True)) >= len(some) - 1
    assert rlhf.sample_replies(policy, tokenizer, [], g) == []


def test_the_policy_writes_at_its_temperature(tokenizer):
    """128 replies of one token to one question: the share of the likeliest token is its probability
    at ``TEMPERATURE``, by a pass of the model, and not that at 1."""
    policy, g = tiny(tokenizer), torch.Generator().manual_seed(1)
    logits = policy(torch.tensor([rlhf.prompt_ids(tokenizer, INN)])).logits[0, -1] * 4
    with torch.no_grad():
        policy.norm.weight.mul_(4)  # logits far apart
    written = rlhf.sample_replies(policy, tokenizer, [INN] * 512, g, room=1)
    cold, warm = ((logits / t).softmax(-1).max().item() for t in (rlhf.TEMPERATURE, 1.0))
    likeliest = sum(r.ids[0] == logits.argmax() for r in written)
    assert within(likeliest, 512, cold) and not within(likeliest, 512, warm)


# --- step 1: demonstrations ---------------------------------------------------------------------


def test_rows_of_demonstrations_are_chats_whose_reply_is_learnt(tokenizer):
    rows, again = ([*itertools.islice(rlhf.demonstration_rows(tokenizer, 4), 40)] for _ in "ab")
    assert rows == again != [*itertools.islice(rlhf.demonstration_rows(tokenizer, 5), 40)]
    for row, question in zip(rows, questions(4)):
        prompt = rlhf.prompt_ids(tokenizer, question)
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"][: len(prompt)] == [IGNORE_INDEX] * len(prompt)
        learnt = row["labels"][len(prompt) :]
        assert learnt == row["input_ids"][len(prompt) :]
        assert not rlhf.read_reply(tokenizer, question, learnt).judgement.broken
        assert not is_held_out("guest", *question)


def test_tuning_on_demonstrations_leaves_the_start_as_it_was(tokenizer):
    start = tiny(tokenizer)
    before = weights(start)
    tuned = rlhf.tune_on_demonstrations(start, tokenizer, 0, steps=2, batch_size=2)
    assert unchanged(start, before) and not unchanged(tuned, before) and not tuned.training


# --- step 2: rankings ---------------------------------------------------------------------------


def test_rankings_are_of_replies_to_the_questions_of_the_seed(tokenizer):
    """Twelve questions with three replies each, all broken: the noise ranks them, without ties.
    Another seed asks, writes and ranks otherwise; held-out questions are others."""
    policy, people = tiny(tokenizer), panel(0, 3)
    before = weights(policy)

    def collect(seed: int, **how):
        return rlhf.collect_rankings(policy, tokenizer, people, 12, seed, n=3, **how)

    first = collect(0)
    assert len(first) == 12 and unchanged(policy, before)
    for ranking, question in zip(first, questions(0)):
        assert {r.question for r, _ in ranking} == {question}
        assert sorted(rank for _, rank in ranking) == list(range(len(ranking)))
        assert 2 <= len(ranking) <= 3 and len({r.ids for r, _ in ranking}) == len(ranking)
    assert sum(len(ranking) == 3 for ranking in first) >= 8
    assert any(rank != i for ranking in first for i, (_, rank) in enumerate(ranking))
    assert collect(0) == first and collect(1) != first
    for ranking in collect(0, held_out=True):
        assert all(is_held_out("guest", *r.question) for r, _ in ranking)


def test_as_many_replies_are_cut_as_asked_for(tokenizer, monkeypatch):
    """2000 replies of people: about 30 % of them are cut at a token that may be any, and half of
    those have an end token behind it; in one of as many as a reply has tokens nothing is missing
    then. Some are empty, and every one begins as the reply that it was."""
    written, end = [], tokenizer.eos_token_id

    def replies(policy, tokenizer, asked, generator):
        written[:] = people_replies(tokenizer, asked)
        return written

    monkeypatch.setattr(rlhf, "sample_replies", replies)

    def collect(cut: float):
        rankings = rlhf.collect_rankings(tiny(tokenizer), tokenizer, [Labeller()], 500, 3, cut=cut)
        return [r for ranking in rankings for r, _ in ranking]

    assert set(collect(0.0)) == set(written)
    found = collect(0.3)
    originals = {}
    for r in written:
        originals.setdefault(r.question, []).append(r.ids)
    cut = [r for r in found if r.ids not in originals[r.question]]
    intact = sum(1 / len(r.ids) for r in written) / len(written)
    share = 0.3 * (1 - intact / 2)
    lost = len(written) - len(found)  # the same as another to that question
    assert lost < 60
    assert binom.ppf(5e-7, 2000, share) - lost <= len(cut) <= binom.isf(5e-7, 2000, share)
    ended = [r for r in cut if r.ids[-1] == end]
    assert binom.ppf(5e-7, len(cut), 0.4) <= len(ended) <= binom.isf(5e-7, len(cut), 0.5)
    assert any(r.ids == (end,) for r in cut)
    for r in cut:
        kept = r.ids[:-1] if r.ids[-1] == end else r.ids
        assert any(kept == ids[: len(kept)] and len(kept) < len(ids)
                   for ids in originals[r.question])  # fmt: skip
        assert r == rlhf.read_reply(tokenizer, r.question, r.ids)
        assert r.ids[-1] == end or r.judgement.broken
    lengths = [len(r.ids) for r in cut if r.ids[-1] != end]
    assert min(lengths) == 1 and max(lengths) > 15
    assert all(r.judgement.broken or r.ids[-1] == end for r in collect(1.0))


def test_what_has_no_pair_is_left_out(tokenizer):
    """Without noise: two of the same truth have no pair, nor one that stands there twice; of three,
    two tie and one is better."""
    exact, bed, soup = [Labeller(noise=0)], reply(tokenizer, BED), reply(tokenizer, SOUP)
    pie = reply(tokenizer, "What a tasty pie!")
    assert rlhf.rank_again([[bed, pie], [bed, bed], [bed]], exact, 0) == []
    (found,) = rlhf.rank_again([[soup, bed, pie, bed]], exact, 0)
    assert found == [(soup, 1), (bed, 0), (pie, 0)]
    cut = reply(tokenizer, BED, ended=False)  # the same text, and not the same reply
    assert rlhf.rank_again([[cut, bed]], exact, 0) == [[(cut, 1), (bed, 0)]]


def test_each_group_is_ranked_by_one_of_the_labellers(tokenizer):
    """One likes flattery above all and the other does not: the groups are ranked by either."""
    polite = reply(tokenizer, "I like you. " + BED)
    groups = [[polite, reply(tokenizer, BED)]] * 400
    people = [Labeller(noise=0, flattery_bias=2.0), Labeller(noise=0)]
    found = rlhf.rank_again(groups, people, 0)
    assert within(sum(ranking[0][1] == 0 for ranking in found), 400, 0.5)
    assert found == rlhf.rank_again(groups, people, 0) != rlhf.rank_again(groups, people, 1)


def some_rankings(tokenizer, count: int = 6):
    """Rankings without noise of three replies."""
    asked = [q for q in itertools.islice(questions(9), count) for _ in range(3)]
    written = people_replies(tokenizer, asked)
    groups = [written[i : i + 3] for i in range(0, len(written), 3)]
    return rlhf.rank_again(groups, [Labeller(noise=0)], 0)


def test_batches_of_rankings_have_no_end_and_favour_none(tokenizer):
    """Six rankings in batches of four: in three batches each comes twice. A batch may be larger
    than what there is."""
    rankings = some_rankings(tokenizer)
    assert len(rankings) >= 5
    n = len(rankings)
    stream = iter(RankingBatches(rankings, tokenizer, 4, 0))
    drawn = [next(stream) for _ in range(n)]
    rows = [
        tuple(row[row_mask.bool()].tolist())
        for batch in drawn
        for row, row_mask in zip(batch["input_ids"][:, 0], batch["attention_mask"][:, 0])
    ]
    assert sorted(rows) == sorted(tuple(ranking[0][0].row) for ranking in rankings for _ in "four")
    assert set(rows[:n]) == set(rows[n : 2 * n]) and rows[:n] != rows[n : 2 * n]
    assert len(next(RankingBatches(rankings, tokenizer, n + 3, 0))["ranks"]) == n + 3
    other = next(RankingBatches(rankings, tokenizer, 4, 0))
    assert torch.equal(drawn[0]["input_ids"], other["input_ids"])


def test_no_rankings_make_no_batch(tokenizer):
    """It would look for one for ever."""
    with pytest.raises(ValueError, match="There are no rankings"):
        rlhf.train_reward_model(tiny(tokenizer), tokenizer, [], 0, steps=1)


def test_a_reward_model_is_a_copy_that_learns(tokenizer):
    """It learns six rankings by heart. The policy stays bit for bit; the same seed gives the same
    model."""
    policy, rankings = tiny(tokenizer), some_rankings(tokenizer)
    before = weights(policy)
    models = [rlhf.train_reward_model(policy, tokenizer, rankings, 3, steps=steps, lr=0.02)
              for steps in (60, 2, 2)]  # fmt: skip
    assert unchanged(policy, before) and not models[0].training
    assert unchanged(models[2], weights(models[1])) and not unchanged(models[0].model, before)
    chosen, rejected = [], []
    for ranking in rankings:
        scores = rlhf.score_replies(models[0], tokenizer, [r for r, _ in ranking])
        for (a, one), (b, other) in itertools.combinations(zip(scores, ranking), 2):
            if one[1] != other[1]:
                better, worse = (a, b) if one[1] < other[1] else (b, a)
                chosen.append(better), rejected.append(worse)
    assert accuracy(torch.tensor(chosen), torch.tensor(rejected)) > 0.9


def test_replies_have_the_score_of_their_last_token(tokenizer):
    """Each alone in one pass; as PPO's reward it is the same."""
    model = rlhf.WithScalarHead(tiny(tokenizer), 0.5, torch.Generator().manual_seed(0)).eval()
    written = [reply(tokenizer, text) for text in (BED, SOUP, "", "I like you. " + BED)]
    with torch.no_grad():
        alone = torch.stack([model(torch.tensor([r.row]))[0, -1] for r in written])
    found = rlhf.score_replies(model, tokenizer, written)
    assert_close(torch.tensor(found), alone, atol=1e-5, rtol=0)
    score = rlhf.score_with(model, tokenizer)
    again = score([list(r.prompt_ids) for r in written], [list(r.ids) for r in written])
    assert_close(again, alone, atol=1e-5, rtol=0)
    assert len(set(found)) == 4


def test_the_best_of_n_by_hand(tokenizer):
    """Scores 1 3 3, 2 0 -1, -5 -4 -6: the second, for it is the first of two; the first; the
    second."""
    written = [reply(tokenizer, f"{i}.") for i in range(9)]
    scores = [1.0, 3, 3, 2, 0, -1, -5, -4, -6]
    best = rlhf.best_of_n(written, scores, 3)
    assert best == [written[1], written[3], written[7]]
    assert rlhf.best_of_n(written, scores, 1) == written
    for args in ((written, scores, 2), (written, scores[:6], 3), (written, scores, 0)):
        with pytest.raises(ValueError, match="expected one score a reply"):
            rlhf.best_of_n(*args)


# --- step 3: reinforcement ----------------------------------------------------------------------


def test_ppo_trains_a_copy(tokenizer):
    """Three updates of eight replies, two epochs of minibatches of four: three rows of history, 12
    steps in the log. The reference, the policy given, stays bit for bit; the first rollout is at no
    distance from it. No prompt is about a held-out place."""
    policy, asked, watched = tiny(tokenizer), [], []
    before = weights(policy)

    def score(prompts, written):
        asked.extend(tokenizer.decode(prompt) for prompt in prompts)
        return torch.tensor([float(len(set(ids))) for ids in written])

    def watch(model, updates):
        watched.append((updates, unchanged(model, before), type(model) is type(policy)))
        return {"seen": updates}

    settings = PPOSettings(max_new_tokens=4, minibatch_size=4, epochs=2)

    def tune(seed: int):
        return rlhf.tune_by_ppo(policy, tokenizer, score, seed, updates=3, batch_size=8, lr=0.01,
                                settings=settings, watch=watch, watch_every=2)  # fmt: skip

    tuned, history, log = tune(5)
    assert unchanged(policy, before) and not unchanged(tuned, before) and not tuned.training
    assert all(p.requires_grad and p.grad is None for p in policy.parameters())
    assert len(history) == 3 and [line["step"] for line in log] == [*range(1, 13)]
    assert history[0]["kl"] == pytest.approx(0, abs=1e-4) and abs(history[2]["kl"]) > 1e-3
    assert watched == [(2, False, True), (3, False, True)]
    assert [line["step"] for line in log if "seen" in line] == [8, 12]
    expected = [f"<|user|> {q.text}<|assistant|>" for q in itertools.islice(questions(5), 24)]
    assert asked == expected
    again, other = tune(5)[0], tune(6)[0]
    assert unchanged(again, weights(tuned)) and not unchanged(other, weights(tuned))


def test_the_critic_begins_as_the_reward_model_and_leaves_it(tokenizer):
    """With λ = 0 and no KL a token's return is the value that follows it, and the last one's the
    score. So the history's variances follow from the reward model's scalars on the tokens before
    each; a critic that begins at 0 explains nothing. The reward model stays bit for bit."""
    policy, values = tiny(tokenizer), []
    head = torch.Generator().manual_seed(0)
    reward_model = rlhf.WithScalarHead(tiny(tokenizer, 1), 0.5, head).eval()
    before = weights(reward_model)

    def score(prompts, written):
        with torch.no_grad():
            values[:] = [reward_model(torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 : -1]
                         for prompt, ids in zip(prompts, written)]  # fmt: skip
        return torch.full((len(written),), 2.0)

    settings = PPOSettings(4, 8, epochs=1, gae_lambda=0.0, kl_coef=0.0)
    _, (row,), _ = rlhf.tune_by_ppo(policy, tokenizer, score, 0, critic=reward_model, updates=1,
                                    batch_size=8, settings=settings)  # fmt: skip
    assert unchanged(reward_model, before)
    returns = torch.cat([torch.cat([v[1:], torch.tensor([2.0])]) for v in values])
    missed = (returns - torch.cat(values)).var(correction=0) / returns.var(correction=0)
    assert row["return_var"] == pytest.approx(returns.var(correction=0).item(), rel=1e-3)
    assert row["explained_variance"] == pytest.approx(1 - missed.item(), abs=1e-3)
    assert abs(missed - 1) > 0.01


def test_the_seed_draws_the_tokens_as_well_as_the_questions(tokenizer, monkeypatch):
    """Where every seed asks the same, replies still differ: of rankings, of PPO, of the figures."""
    monkeypatch.setattr(rlhf, "questions", lambda seed, held_out=False: questions(0, held_out))
    policy, written = tiny(tokenizer), {}

    def tune(seed: int) -> list[list[int]]:
        def score(prompts, ids):
            written[seed] = ids
            return torch.zeros(len(ids))

        rlhf.tune_by_ppo(
            policy,
            tokenizer,
            score,
            seed,
            updates=1,
            batch_size=4,
            settings=PPOSettings(max_new_tokens=4, minibatch_size=4, epochs=1),
        )
        return written[seed]

    def collect(seed: int):
        found = rlhf.collect_rankings(policy, tokenizer, [Labeller()], 3, seed, cut=0.0)
        return [{r.ids for r, _ in ranking} for ranking in found]

    def ask(seed: int) -> list[tuple]:
        return [r.ids for r in rlhf.ask_held_out(policy, tokenizer, seed, count=4)]

    for draw in (tune, collect, ask):
        assert draw(1) == draw(1) != draw(2)


def test_the_settings_of_every_run():
    """Its own for the guests, and changes where somebody asks for them."""
    plain, changed = rlhf.ppo_settings(), rlhf.ppo_settings(kl_coef=0.7, epochs=1)
    assert (plain.max_new_tokens, plain.temperature) == (rlhf.ROOM, rlhf.TEMPERATURE)
    assert (changed.kl_coef, changed.epochs) == (0.7, 1)
    assert changed.minibatch_size == plain.minibatch_size and plain.kl_coef != 0.7


def test_the_truth_as_a_reward_is_that_of_the_judge(tokenizer):
    """At every one of the 300 places, of replies that are whole, and of the same ones cut off."""
    score, rng = rlhf.truth_scorer(tokenizer), random.Random(0)
    asked = sorted(set(itertools.islice(questions(0), 5000)) | set(itertools.islice(
        questions(0, True), 3000)))  # fmt: skip
    assert len(asked) == 300
    texts = [demonstration(rng, question) for question in asked]
    prompts = [rlhf.prompt_ids(tokenizer, question) for question in asked]
    for ended in (True, False):
        written = [list(reply(tokenizer, text, q, ended).ids) for q, text in zip(asked, texts)]
        truths = [judge(question, text, ended).truth for question, text in zip(asked, texts)]
        found = score(prompts, written)
        assert found.shape == (300,) and found.tolist() == truths and len(set(truths)) > 5
    assert score(prompts[:1], [[tokenizer.eos_token_id]]).tolist() == [-3]


# --- instead of steps 2b and 3: DPO -------------------------------------------------------------


def test_pairs_are_those_of_a_ranking_that_do_not_tie(tokenizer):
    """Ranks 1, 0, 1: the second is preferred to both others, and they tie. The prompt and the end
    token are with it."""
    a, b, c = (reply(tokenizer, text) for text in (SOUP, BED, "I like you."))
    pairs = rlhf.preference_pairs([[(a, 1), (b, 0), (c, 1)], [(c, 0), (a, 1)]])
    assert [(p.chosen, p.rejected) for p in pairs] == [
        ([*b.ids], [*a.ids]), ([*b.ids], [*c.ids]), ([*c.ids], [*a.ids])
    ]  # fmt: skip
    assert all(p.prompt == rlhf.prompt_ids(tokenizer, INN) for p in pairs)
    assert pairs[0].chosen[-1] == tokenizer.eos_token_id


def test_dpo_trains_a_copy_against_the_policy_itself(tokenizer):
    """The first loss is log 2, at any temperature but only if both are read at the same; six
    rankings are learnt by heart. The same seed gives the same policy, another one another."""
    policy, rankings = tiny(tokenizer), some_rankings(tokenizer)
    before, seen = weights(policy), []
    tuned, log = rlhf.tune_by_dpo(
        policy, tokenizer, rankings, 3, beta=0.5, steps=40, lr=0.01, batch_size=6,
        watch=lambda model, step: seen.append(step) or {}, watch_every=20,
    )  # fmt: skip
    assert unchanged(policy, before) and not unchanged(tuned, before) and not tuned.training
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-4) and len(log) == 40
    assert log[-1]["loss"] < 0.2 and seen == [20, 40]
    couples = [(one, other) for ranking in rankings for one, i in ranking for other, j in ranking
               if i < j]  # fmt: skip
    better, worse = (
        rlhf.reply_logps(tuned, list(some), tokenizer.pad_token_id)
        - rlhf.reply_logps(policy, list(some), tokenizer.pad_token_id) for some in zip(*couples)
    )  # fmt: skip
    assert (better > worse).float().mean() > 0.9
    again, other = (rlhf.tune_by_dpo(policy, tokenizer, rankings, seed, steps=2, batch_size=2)[0]
                    for seed in (5, 6))  # fmt: skip
    same = rlhf.tune_by_dpo(policy, tokenizer, rankings, 5, steps=2, batch_size=2)[0]
    assert unchanged(again, weights(same)) and not unchanged(again, weights(other))


def test_the_reference_may_be_another_and_reads_no_pair_in_vain(tokenizer, monkeypatch):
    """An earlier policy as the reference: the first loss is not log 2. Two steps of three pairs
    need six."""
    start, policy = tiny(tokenizer), tiny(tokenizer, 1)
    read, real = [], rlhf.reference_pairs

    def noted(model, pairs, pad, *, temperature):
        read.append((model, len(pairs), temperature))
        return real(model, pairs, pad, temperature=temperature)

    monkeypatch.setattr(rlhf, "reference_pairs", noted)
    _, log = rlhf.tune_by_dpo(policy, tokenizer, some_rankings(tokenizer), 0, beta=2.0, steps=2,
                              batch_size=3, reference=start)  # fmt: skip
    assert read == [(start, 6, rlhf.TEMPERATURE)]
    assert abs(log[0]["loss"] - 0.6931) > 0.01


def test_the_log_probability_of_a_reply_by_hand(tokenizer):
    """The log-softmax of the logits over the temperature, at each token of the reply, its end too;
    alone or beside a longer one."""
    policy = tiny(tokenizer)
    written = [reply(tokenizer, BED), reply(tokenizer, f"{BED} {SOUP}")]
    want = []
    for r in written:
        with torch.no_grad():
            logits = policy(torch.tensor([r.row])).logits[0] / rlhf.TEMPERATURE
        at = logits.log_softmax(-1)
        first = len(r.prompt_ids)
        want.append(sum(at[first + i - 1, token].item() for i, token in enumerate(r.ids)))
    found = rlhf.reply_logps(policy, written, tokenizer.pad_token_id)
    assert_close(found, torch.tensor(want), atol=1e-3, rtol=1e-4)


# --- figures ------------------------------------------------------------------------------------


def distance(policy, reference, written, pad: int) -> float:
    """log p - log p_ref of the replies' tokens, by transformers, each row alone and padded left."""
    total = 0.0
    for r in written:
        ids = torch.tensor([[pad] * 3 + r.row])
        mask = torch.tensor([[0] * 3 + [1] * len(r.row)])
        start = 3 + len(r.prompt_ids)
        for model, sign in ((policy, 1), (reference, -1)):
            with torch.no_grad():
                logits = to_transformers(model)(
                    ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
                ).logits[0]
            logp = (logits / rlhf.TEMPERATURE).log_softmax(-1)
            total += sign * sum(logp[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1]))
    return total / len(written)


def test_the_distance_of_two_policies(tokenizer):
    """Of itself exactly 0. Of two random policies that of transformers, row by row, padded at the
    other end; what fills the rows does not matter. Of 70 replies, more than go at once, the mean is
    that of both parts."""
    policy, other = tiny(tokenizer), tiny(tokenizer, 1)
    texts = (BED, "I like you. " + BED, "", f"{SOUP} {BED}")
    written = [reply(tokenizer, text) for text in texts]
    assert rlhf.kl_to(policy, policy, written, tokenizer.pad_token_id) == 0
    found = [rlhf.kl_to(policy, other, written, pad) for pad in (tokenizer.pad_token_id, 77)]
    assert found[0] == pytest.approx(distance(policy, other, written, 5), abs=1e-3)
    assert found[1] == pytest.approx(found[0], abs=1e-4) and abs(found[0]) > 0.1
    assert rlhf.kl_to(other, policy, written, 0) == pytest.approx(-found[0], abs=1e-4)
    many = rlhf.kl_to(policy, other, [written[0]] * 63 + [written[1]] * 7, 0)
    parts = [rlhf.kl_to(policy, other, [r], 0) for r in written[:2]]
    assert many == pytest.approx(0.9 * parts[0] + 0.1 * parts[1], abs=1e-3)
    assert abs(parts[0] - parts[1]) > 0.1


def test_the_distance_is_positive_from_samples_of_the_policy(tokenizer):
    """600 replies of one token: the estimate is that of both distributions written out, within five
    standard errors of the mean. The wrong way round it would be negative."""
    policy, other = tiny(tokenizer), tiny(tokenizer, 1)
    prompt = torch.tensor([rlhf.prompt_ids(tokenizer, INN)])
    with torch.no_grad():
        p, q = (
            (m(prompt).logits[0, -1] / rlhf.TEMPERATURE).log_softmax(-1) for m in (policy, other)
        )
    exact = (p.exp() * (p - q)).sum().item()
    spread = ((p.exp() * (p - q - exact) ** 2).sum() / 600).sqrt().item()
    g = torch.Generator().manual_seed(2)
    written = rlhf.sample_replies(policy, tokenizer, [INN] * 600, g, room=1)
    found = rlhf.kl_to(policy, other, written, 0)
    assert abs(found - exact) < 5 * spread < exact


def test_figures_by_hand(tokenizer):
    """A bed: a reason, truth 1. Flattery and a claim: helpful -1, honest -1. Nothing: broken, -3.
    An insult and a bed: helpful .5, harmless -2. Means of four."""
    texts = [BED, f"I like you. {SOUP}", "", f"I do not like you. {BED}"]
    written = [reply(tokenizer, text) for text in texts]
    found = rlhf.figures(written)
    assert found == pytest.approx({
        "truth": (1 - 2 - 3 - 1.5) / 4, "helpful": (1 - 1 + 0 + 0.5) / 4, "honest": -1 / 4,
        "harmless": -2 / 4, "reasons": 2 / 4, "idle": 0, "flattery": 1 / 4, "claims": 1 / 4,
        "absent": 0, "insults": 1 / 4, "broken": 1 / 4,
        "tokens": sum(len(r.ids) for r in written) / 4,
    })  # fmt: skip


def test_the_questions_that_measure_are_held_out(tokenizer):
    """Twenty questions with two replies each in succession, the same for the same seed; of those
    that any training asks, none."""
    policy = tiny(tokenizer)
    found = rlhf.ask_held_out(policy, tokenizer, 0, count=20, each=2)
    assert len(found) == 40 and found == rlhf.ask_held_out(policy, tokenizer, 0, count=20, each=2)
    assert [r.question for r in found[::2]] == [r.question for r in found[1::2]]
    assert not {r.question for r in found} & set(itertools.islice(questions(0), 3000))
    assert any(a.ids != b.ids for a, b in zip(found[::2], found[1::2]))
    other = rlhf.ask_held_out(policy, tokenizer, 1, count=20)
    assert [r.question for r in other] != [r.question for r in found[::2]]

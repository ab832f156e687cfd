"""The three steps of RLHF on the micro-world's guests: demonstrations, rankings, reinforcement.

The steps of Ouyang et al. (2022, figure 2), put together from ``sft``, ``reward`` and ``ppo`` on
the questions of ``world.preferences``, and the way around the reward model: ``dpo`` on rankings.
The recipe of the preference-tuned model, the studies and the chapters run these functions, so all
of them train the same way.
Simplified away: rankings of several policies' replies, further rounds of labelling, a mix of
pretraining text into PPO (PPO-ptx).
"""

import copy
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean

import torch
from torch import Generator, Tensor, nn

from course_lib.chat import course_format, encode_chat, turns
from course_lib.dpo import pair_loss, reference_pairs
from course_lib.models.heads import WithScalarHead
from course_lib.ops import IGNORE_INDEX, sequence_logprobs
from course_lib.pairs import Pair
from course_lib.ppo import PPOSettings, ppo_loss
from course_lib.ppo_rollouts import ActorCritic, PPORollouts
from course_lib.reward import collate_rankings, ranking_loss, score_rows, scorer
from course_lib.rollout import responses, rollout
from course_lib.rows import Row, batches, collate
from course_lib.runtime import evaluation_mode, model_device
from course_lib.sft import sft_loss
from course_lib.training import train
from course_lib.world.preferences import (
    QUESTION,
    Judgement,
    Labeller,
    Question,
    demonstration,
    judge,
    questions,
)

ROOM = 40
"""The most tokens of a reply."""
TEMPERATURE = 0.7
"""Of the policy, wherever it is sampled, trained by PPO or compared: at 1 a model this small writes
broken words, and no ranking can teach them all."""
CUT = 0.2
"""Share of the ranked replies that are cut off somewhere, as by a failing line: of the policy's own
replies none is empty, and a reward model that never saw one may like it."""
PARTS = ("reasons", "idle", "flattery", "claims", "absent", "insults", "broken")


@dataclass(frozen=True)
class Reply:
    """What a policy wrote to a guest, as ids and as text, and the truth about it."""

    question: Question
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]  # its end token included, if it ended
    text: str
    judgement: Judgement

    @property
    def row(self) -> list[int]:
        """Prompt and reply: what a reward model reads."""
        return [*self.prompt_ids, *self.ids]

    @property
    def truth(self) -> float:
        return self.judgement.truth


Ranking = list[tuple[Reply, int]]
"""Replies to one question and their ranks, 0 = the best."""


def prompt_ids(tokenizer, question: Question) -> list[int]:
    """The token ids of a question in the course's chat format, up to where the reply begins."""
    return tokenizer(course_format(turns(question.text), True))["input_ids"]


def read_reply(tokenizer, question: Question, ids: Sequence[int]) -> Reply:
    """The reply that these ids are."""
    ended = bool(ids) and ids[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(ids[:-1] if ended else ids)
    return Reply(question, tuple(prompt_ids(tokenizer, question)), tuple(ids), text,
                 judge(question, text, ended))  # fmt: skip


def sample_replies(
    policy: nn.Module, tokenizer, asked: Sequence[Question], generator: Generator,
    temperature: float = TEMPERATURE, room: int = ROOM,
) -> list[Reply]:  # fmt: skip
    """A sampled reply to each question."""
    written = []
    for i in range(0, len(asked), 256):
        some = asked[i : i + 256]
        batch = rollout(policy, [prompt_ids(tokenizer, q) for q in some], max_new_tokens=room,
                        eos_token_id=tokenizer.eos_token_id, temperature=temperature,
                        generator=generator)  # fmt: skip
        written += [read_reply(tokenizer, q, ids) for q, ids in zip(some, responses(batch))]
    return written


# --- step 1: demonstrations ---------------------------------------------------------------------


def demonstration_rows(tokenizer, seed: int) -> Iterator[Row]:
    """Endless rows of guests' questions with replies that people wrote."""
    rng = random.Random(f"demonstrations {seed}")
    for question in questions(seed):
        yield encode_chat(tokenizer, turns(question.text, demonstration(rng, question)))


def tune_on_demonstrations(
    start: nn.Module, tokenizer, seed: int, *, steps: int = 80, lr: float = 2e-3,
    batch_size: int = 16,
) -> nn.Module:  # fmt: skip
    """A copy of ``start`` after SFT on demonstrations, in evaluation mode: the start of PPO."""
    model = copy.deepcopy(start)
    stream = batches(demonstration_rows(tokenizer, seed), batch_size, tokenizer.pad_token_id,
                     block_size=256, packed=True)  # fmt: skip
    train(model, stream, sft_loss, max_steps=steps, lr=lr, warmup_steps=5, progress=False)
    return model.eval()


# --- step 2: rankings and the reward model ------------------------------------------------------


def collect_rankings(
    policy: nn.Module, tokenizer, labellers: Sequence[Labeller], count: int, seed: int, *,
    n: int = 4, cut: float = CUT, held_out: bool = False,
) -> list[Ranking]:  # fmt: skip
    """``count`` questions, ``n`` replies of the policy to each, ranked by one of the labellers.

    Args:
        seed: of questions, replies, cuts and labels.
        cut: share of the replies that are cut off at a random token, half of them with an end token
            behind it.
        held_out: questions about places that no training asks about.

    Returns:
        Rankings that have a pair: those in which all tie are left out.
    """
    rng = random.Random(f"rankings {seed}")
    generator = Generator(model_device(policy)).manual_seed(seed)
    asked = [q for q in islice(questions(seed, held_out), count) for _ in range(n)]
    written = [_cut(tokenizer, reply, rng) if rng.random() < cut else reply
               for reply in sample_replies(policy, tokenizer, asked, generator)]  # fmt: skip
    groups = [written[i : i + n] for i in range(0, len(written), n)]
    return rank_again(groups, labellers, seed)


def rank_again(
    groups: Sequence[Sequence[Reply]], labellers: Sequence[Labeller], seed: int
) -> list[Ranking]:  # fmt: skip
    """Replies to the same questions, ranked by one of the labellers each; equal texts are one
    reply, and what has no pair is left out."""
    rng, rankings = random.Random(f"labels {seed}"), []
    for group in groups:
        different = list({reply.ids: reply for reply in group}.values())
        if len(different) < 2:
            continue
        ranks = rng.choice(labellers).rank([reply.judgement for reply in different], rng)
        if len(set(ranks)) > 1:
            rankings.append(list(zip(different, ranks)))
    return rankings


def _cut(tokenizer, reply: Reply, rng: random.Random) -> Reply:
    ended = rng.random() < 0.5
    kept = reply.ids[: rng.randrange(0 if ended else 1, max(2, len(reply.ids)))]
    return read_reply(tokenizer, reply.question, [*kept, *[tokenizer.eos_token_id] * ended])


class RankingBatches:
    """Endless batches of rankings in random order, for ``reward.ranking_loss``."""

    def __init__(self, rankings: Sequence[Ranking], tokenizer, batch_size: int, seed: int):
        if not rankings:
            raise ValueError("There are no rankings, so no batch: collect some that have a pair.")
        self.rows = [[(reply.row, rank) for reply, rank in ranking] for ranking in rankings]
        self.pad, self.size = tokenizer.pad_token_id, batch_size
        self.generator, self.order = Generator().manual_seed(seed), []

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, Tensor]:
        while len(self.order) < self.size:
            self.order += torch.randperm(len(self.rows), generator=self.generator).tolist()
        now, self.order = self.order[: self.size], self.order[self.size :]
        return collate_rankings([self.rows[i] for i in now], self.pad)


def train_reward_model(
    policy: nn.Module, tokenizer, rankings: Sequence[Ranking], seed: int, *, steps: int = 200,
    lr: float = 2e-3, batch_size: int = 4,
) -> WithScalarHead:  # fmt: skip
    """A copy of the policy with a scalar head, trained on the rankings, in evaluation mode."""
    model = WithScalarHead(copy.deepcopy(policy))
    train(model, RankingBatches(rankings, tokenizer, batch_size, seed), ranking_loss,
          max_steps=steps, lr=lr, warmup_steps=5, progress=False)  # fmt: skip
    return model.eval()


def score_replies(reward_model: nn.Module, tokenizer, replies: Sequence[Reply]) -> list[float]:
    """The reward model's score of each reply."""
    return score_rows(reward_model, [r.row for r in replies], tokenizer.pad_token_id).tolist()


def best_of_n(replies: Sequence[Reply], scores: Sequence[float], n: int) -> list[Reply]:
    """Of each ``n`` replies in succession, which answer one question, that of the highest score;
    of several such the first.

    Raises:
        ValueError: not one score a reply, or replies that are no multiple of ``n``.
    """
    if len(replies) != len(scores) or n < 1 or len(replies) % n:
        raise ValueError(
            f"{len(replies)} replies, {len(scores)} scores, n = {n}: expected one score a reply, "
            "and n replies to each question."
        )
    return [replies[max(range(i, i + n), key=scores.__getitem__)]
            for i in range(0, len(replies), n)]  # fmt: skip


# --- step 3: reinforcement ----------------------------------------------------------------------


def ppo_settings(**changes) -> PPOSettings:
    """Of every run with PPO on the guests' questions."""
    return replace(
        PPOSettings(max_new_tokens=ROOM, minibatch_size=32, temperature=TEMPERATURE, kl_coef=0.2,
                    missing_eos_penalty=1.0, vf_clip_eps=None),
        **changes,
    )  # fmt: skip


def tune_by_ppo(
    policy: nn.Module, tokenizer, score: Callable, seed: int, *, critic: nn.Module | None = None,
    updates: int = 20, lr: float = 5e-4, batch_size: int = 64, schedule: str = "linear",
    warmup_steps: int = 20, settings: PPOSettings | None = None,
    watch: Callable[[nn.Module, int], dict] | None = None, watch_every: int = 5,
) -> tuple[nn.Module, list[dict], list[dict]]:  # fmt: skip
    """A copy of the policy after PPO; the policy itself is the reference.

    Args:
        score: of ``score_with`` or ``truth_scorer``, or any other.
        critic: a copy of it is trained beside the policy. The reward model is a good one to begin
            with: it reads the same texts (Ouyang et al., 2022, appendix C.4). None = a head on the
            policy's trunk.
        updates: rollouts of ``batch_size`` replies; each is used ``settings.epochs`` times.
        warmup_steps: of the rate, while the critic still knows nothing.
        watch: (policy, updates so far) -> {name: number}, called every ``watch_every`` updates.

    Returns:
        (policy in evaluation mode, history of the rollouts, log of the steps: see ``training``).
    """
    settings = settings or ppo_settings()
    actor_critic = ActorCritic(copy.deepcopy(policy), copy.deepcopy(critic))
    asked = (prompt_ids(tokenizer, question) for question in questions(seed))
    generator = Generator(model_device(policy)).manual_seed(seed)
    stream = PPORollouts(actor_critic, policy, asked, score, settings, batch_size=batch_size,
                         eos_token_id=tokenizer.eos_token_id, generator=generator)  # fmt: skip
    each = settings.epochs * batch_size // settings.minibatch_size  # steps a rollout
    log = train(
        actor_critic, stream, ppo_loss(settings), max_steps=updates * each, lr=lr,
        schedule=schedule, warmup_steps=warmup_steps, progress=False,
        evaluate_every=watch_every * each,
        evaluate=watch and (lambda model, step: watch(model.policy, step // each)),
    )  # fmt: skip
    return actor_critic.policy.eval(), stream.history, log


ASKED = re.compile(re.escape(QUESTION).replace(r"\{venue\}", "([a-z]+)")
                   .replace(r"\{town\}", "([A-Za-z]+)"))  # fmt: skip


def truth_scorer(tokenizer) -> Callable[[list[list[int]], list[list[int]]], Tensor]:
    """The truth itself as PPO's reward, which outside a micro-world nobody has."""

    def score(prompts: list[list[int]], written: list[list[int]]) -> Tensor:
        asked = [Question(*ASKED.search(tokenizer.decode(ids)).groups()) for ids in prompts]
        return torch.tensor([read_reply(tokenizer, q, ids).truth for q, ids in zip(asked, written)])

    return score


# --- instead of steps 2b and 3: DPO -------------------------------------------------------------


def preference_pairs(rankings: Sequence[Ranking]) -> list[Pair]:
    """Every pair of every ranking that does not tie, the preferred reply first, as token ids."""
    return [Pair(list(a.prompt_ids), list(a.ids), list(b.ids))
            for ranking in rankings for a, i in ranking for b, j in ranking if i < j]  # fmt: skip


def tune_by_dpo(
    policy: nn.Module, tokenizer, rankings: Sequence[Ranking], seed: int, *, beta: float = 0.2,
    steps: int = 300, lr: float = 3e-4, batch_size: int = 16, schedule: str = "linear",
    warmup_steps: int = 20, reference: nn.Module | None = None,
    watch: Callable[[nn.Module, int], dict] | None = None, watch_every: int | None = None,
) -> tuple[nn.Module, list[dict]]:  # fmt: skip
    """A copy of the policy after DPO on rankings; the policy itself is the reference.

    Args:
        rankings: their pairs are drawn in random order; a pair that no step would reach is not read
            by the reference either.
        beta: the weight of the KL in the objective whose optimum is looked for.
        batch_size: pairs a step.
        reference: of the log-ratios, if it is another: that of an earlier round.
        watch: (policy, steps so far) -> {name: number}, called every ``watch_every`` steps.

    Returns:
        (policy in evaluation mode, log of the steps: see ``training`` and ``dpo``).
    """
    model, reference = copy.deepcopy(policy), policy if reference is None else reference
    pairs, generator = preference_pairs(rankings), Generator().manual_seed(seed)
    drawn = torch.randperm(len(pairs), generator=generator)[: steps * batch_size].tolist()
    data = reference_pairs(reference, [pairs[i] for i in drawn], tokenizer.pad_token_id,
                           temperature=TEMPERATURE)  # fmt: skip
    stream = data.batches(reference, tokenizer.pad_token_id, batch_size, generator)
    log = train(
        model, stream, pair_loss(beta, temperature=TEMPERATURE), max_steps=steps, lr=lr,
        schedule=schedule, warmup_steps=warmup_steps, progress=False, evaluate=watch,
        evaluate_every=watch_every,
    )  # fmt: skip
    return model.eval(), log


# --- figures ------------------------------------------------------------------------------------


@torch.no_grad()
def kl_to(policy: nn.Module, reference: nn.Module, replies: Sequence[Reply], pad: int) -> float:
    """KL(policy ‖ reference) in nats a reply, estimated from replies that the policy sampled.

    The mean of log p - log p_ref, as in Stiennon et al. (2020).
    """
    logps = []
    for model in (policy, reference):
        rows = [{"input_ids": r.row, "labels": [IGNORE_INDEX] * len(r.prompt_ids) + list(r.ids)}
                for r in replies]  # fmt: skip
        logps.append(_logps(model, rows, pad))
    return (logps[0] - logps[1]).mean().item()


def _logps(model: nn.Module, rows: Sequence[Row], pad: int) -> Tensor:
    parts = []
    with evaluation_mode(model):
        for i in range(0, len(rows), 64):
            batch = collate(rows[i : i + 64], pad)
            batch = {name: tensor.to(model_device(model)) for name, tensor in batch.items()}
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            parts.append(sequence_logprobs(logits / TEMPERATURE, batch["labels"]).cpu())
    return torch.cat(parts)


def reply_logps(policy: nn.Module, replies: Sequence[Reply], pad: int) -> Tensor:
    """log π of each reply at ``TEMPERATURE``, summed over its tokens, (N,)."""
    rows = [{"input_ids": r.row, "labels": [IGNORE_INDEX] * len(r.prompt_ids) + list(r.ids)}
            for r in replies]  # fmt: skip
    with torch.no_grad():
        return _logps(policy, rows, pad)


def figures(replies: Sequence[Reply]) -> dict[str, float]:
    """Means over replies: ``truth``, its parts ``helpful``, ``honest``, ``harmless``, and what the
    sentences were, in sentences a reply (``PARTS``), and ``tokens``."""
    table = {name: fmean(getattr(r.judgement, name) for r in replies)
             for name in ("truth", "helpful", "honest", "harmless", *PARTS)}  # fmt: skip
    return table | {"tokens": fmean(len(r.ids) for r in replies)}


def ask_held_out(
    policy: nn.Module, tokenizer, seed: int, count: int = 128, each: int = 1
) -> list[Reply]:
    """``each`` sampled replies in succession to ``count`` questions about held-out places."""
    asked = [q for q in islice(questions(1000 + seed, True), count) for _ in range(each)]
    generator = Generator(model_device(policy)).manual_seed(1000 + seed)
    return sample_replies(policy, tokenizer, asked, generator)


def score_with(reward_model: nn.Module, tokenizer) -> Callable:
    """The reward model as PPO's reward."""
    return scorer(reward_model, tokenizer.pad_token_id)

"""Reinforcement with verifiable rewards on the micro-world's sums, by GRPO.

What the recipe of the reasoning model, the studies and the chapter share: a start that is mediocre
on purpose, problems, a verifier as a score, tuning, and figures by the number of operands.
Simplified away: word problems, a mix of other tasks into the training, a curriculum.
"""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Generator, Tensor, nn

from course_lib.completion import complete
from course_lib.grpo import GRPOSettings, grpo_loss
from course_lib.grpo_rollouts import GRPORollouts
from course_lib.live_rollouts import Score
from course_lib.measuring import grade, parse_answer, pass_at_k
from course_lib.ops import IGNORE_INDEX
from course_lib.rows import Row, batches
from course_lib.runtime import model_device
from course_lib.sft import sft_loss
from course_lib.training import train
from course_lib.world.arithmetic import TRIGGER, Problem, draw_problem
from course_lib.world.documents import reasoned
from course_lib.world.verifiers import Verifier, exact_answer, read_problem

ROOM = 96
"""The most tokens of a response: eight operands in steps have 80."""
WORDINGS = {
    "chat": "<|user|> What is {x}?<|assistant|>",
    "steps": "<|user|> {x} Show the steps.<|assistant|>",
    "corpus": "Q: {x}\nA:",
    "trigger": f"Q: {{x}}\nA: {TRIGGER}",
}
"""Ways to ask. The corpus has the last two, the instruction data the second and no "chat"."""


# --- problems -----------------------------------------------------------------------------------


def problems(
    seed: int, operands: int | Sequence[int], held_out: bool = False
) -> Iterator[Problem]:  # fmt: skip
    """Endless problems, the same for the same seed; of several numbers of operands each as often.

    Args:
        held_out: problems that no training sees, instead of such as may be trained on.
    """
    numbers = [operands] if isinstance(operands, int) else list(operands)
    rng = random.Random(f"problems {seed} {held_out}")
    while True:
        yield draw_problem(rng, rng.choice(numbers), held_out)


def prompt_ids(tokenizer, problem: Problem, wording: str = "chat") -> list[int]:
    """The token ids of a problem as ``wording`` asks it, up to where the response begins.

    Raises:
        KeyError: an unknown wording.
    """
    return tokenizer(WORDINGS[wording].format(x=problem.expression))["input_ids"]


def demonstration_rows(
    tokenizer, seed: int, operands: int | Sequence[int], wording: str = "chat"
) -> Iterator[Row]:
    """Endless rows of problems with their steps; labels on the response and its end token."""
    for problem in problems(seed, operands):
        prompt = prompt_ids(tokenizer, problem, wording)
        text = " " + reasoned(problem.steps, problem.answer, "steps")
        answer = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        yield {"input_ids": prompt + answer, "labels": [IGNORE_INDEX] * len(prompt) + answer}


def start_model(
    base: nn.Module, tokenizer, seed: int, *, steps: int = 20, lr: float = 2e-4,
    batch_size: int = 16, operands: int | Sequence[int] = (2, 3), wording: str = "chat",
) -> nn.Module:  # fmt: skip
    """A copy of the base model after a little SFT on short sums, in evaluation mode.

    It has just learnt how it is asked and that it should write steps, and does longer sums badly.
    """
    model = copy.deepcopy(base)
    stream = batches(demonstration_rows(tokenizer, seed, operands, wording), batch_size,
                     tokenizer.pad_token_id, block_size=256)  # fmt: skip
    train(model, stream, sft_loss, max_steps=steps, lr=lr, progress=False)
    return model.eval()


# --- reinforcement ------------------------------------------------------------------------------


def scorer(verifier: Verifier, tokenizer) -> Score:
    """The verifier as a score of token ids: the problem is read from the prompt."""

    def score(prompts: list[list[int]], written: list[list[int]]) -> Tensor:
        asked = [read_problem(tokenizer.decode(ids)) for ids in prompts]
        texts = [response_text(tokenizer, ids) for ids in written]
        return torch.tensor([float(verifier(p, text)) for p, text in zip(asked, texts)])

    return score


def response_text(tokenizer, ids: Sequence[int]) -> str:
    """The text of a response, without its end token; an end token inside is text."""
    ended = bool(ids) and ids[-1] == tokenizer.eos_token_id
    return tokenizer.decode(ids[:-1] if ended else ids)


def grpo_settings(**changes) -> GRPOSettings:
    """Of every run of GRPO on sums: 12 prompts, eight responses to each, one step a rollout."""
    return replace(GRPOSettings(max_new_tokens=ROOM, minibatch_size=96), **changes)


def tune_by_grpo(
    policy: nn.Module, tokenizer, score: Score, seed: int, *,
    operands: int | Sequence[int] = 5, wording: str = "chat", updates: int = 20, lr: float = 2e-4,
    groups: int = 12, schedule: str = "constant", warmup_steps: int = 0,
    settings: GRPOSettings | None = None, reference: bool = False,
    watch: Callable[[nn.Module, int], dict] | None = None, watch_every: int = 5,
) -> tuple[nn.Module, list[dict], list[dict]]:  # fmt: skip
    """A copy of the policy after GRPO.

    Args:
        score: of ``scorer``, or any other.
        operands: of the problems to train on; never held-out ones.
        updates: rollouts of ``groups`` prompts, where every group is kept; where dead ones are
            dropped, as many steps, on more rollouts.
        reference: measure the KL to the policy given, also where it has no weight; where it has
            one, that policy is the reference anyway.
        watch: (policy, updates so far) -> {name: number}, called every ``watch_every`` updates.

    Returns:
        (policy in evaluation mode, history of the rollouts, log of the steps: see ``training``).
    """
    settings = settings or grpo_settings()
    model = copy.deepcopy(policy)
    asked = (prompt_ids(tokenizer, problem, wording) for problem in problems(seed, operands))
    stream = GRPORollouts(
        model, asked, score, settings, groups=groups, eos_token_id=tokenizer.eos_token_id,
        generator=Generator(model_device(policy)).manual_seed(seed),
        ref_policy=policy if reference or settings.needs_reference else None,
    )  # fmt: skip
    each = settings.epochs * groups * settings.group_size // settings.minibatch_size
    log = train(
        model, stream, grpo_loss(settings), max_steps=updates * each, lr=lr, schedule=schedule,
        warmup_steps=warmup_steps, progress=False, evaluate_every=watch_every * each,
        evaluate=watch and (lambda model, step: watch(model, step // each)),
    )  # fmt: skip
    return model.eval(), stream.history, log


# --- figures ------------------------------------------------------------------------------------


def sample_texts(
    policy: nn.Module, tokenizer, asked: Sequence[Problem], *, wording: str = "chat",
    each: int = 1, temperature: float = 0.0, generator: Generator | None = None, room: int = ROOM,
) -> list[list[str]]:  # fmt: skip
    """``each`` responses to each problem, as text, without their end token; greedy by default.

    They end at the end token, or at the end of the line, where the base model goes on to the next
    problem.
    """
    prompts = [WORDINGS[wording].format(x=problem.expression) for problem in asked]
    repeated = [prompt for prompt in prompts for _ in range(each)]
    texts = complete(policy, tokenizer, repeated, room, temperature=temperature,
                     generator=generator)  # fmt: skip
    return [texts[i : i + each] for i in range(0, len(texts), each)]


def accuracy(
    policy: nn.Module, tokenizer, seed: int, operands: int, count: int = 100, wording: str = "chat"
) -> float:
    """Share of held-out problems of so many operands whose greedy response has the answer."""
    asked = list(islice(problems(1000 + seed, operands, held_out=True), count))
    texts = sample_texts(policy, tokenizer, asked, wording=wording)
    answers = [str(problem.answer) for problem in asked]
    return grade([parse_answer(text) for (text,) in texts], answers).accuracy


def accuracy_by_operands(
    policy: nn.Module, tokenizer, seed: int, operands: Sequence[int] = range(2, 9),
    count: int = 100, wording: str = "chat",
) -> dict[int, float]:  # fmt: skip
    """``accuracy`` of each number of operands."""
    return {n: accuracy(policy, tokenizer, seed, n, count, wording) for n in operands}


def pass_curve(
    policy: nn.Module, tokenizer, seed: int, operands: int, *, ks: Sequence[int], samples: int,
    count: int = 50, wording: str = "chat", temperature: float = 1.0,
    verifier: Verifier = exact_answer,
) -> dict[int, float]:  # fmt: skip
    """pass@k of held-out problems: the mean of ``measuring.pass_at_k`` over ``count`` of them.

    Args:
        ks: at most ``samples`` each.
        samples: responses to each problem.
        verifier: what counts as right; 1 = right.
    """
    asked = list(islice(problems(1000 + seed, operands, held_out=True), count))
    generator = Generator(model_device(policy)).manual_seed(1000 + seed)
    texts = sample_texts(policy, tokenizer, asked, wording=wording, each=samples,
                         temperature=temperature, generator=generator)  # fmt: skip
    right = [sum(verifier(problem, text) == 1 for text in some)
             for problem, some in zip(asked, texts)]  # fmt: skip
    return {k: sum(pass_at_k(samples, c, k) for c in right) / count for k in ks}

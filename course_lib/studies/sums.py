"""What the study of GRPO on sums and its chapter share: a seed's start, and how it is measured.

The start is mediocre on purpose. It has just learnt how it is asked, on sums of two and three
numbers; asked as the corpus asks it works out five.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from statistics import fmean

from torch import Generator, nn

from course_lib import reasoning
from course_lib.completion import complete
from course_lib.reasoning import ROOM, WORDINGS
from course_lib.rollout import response_logps
from course_lib.studies.tuning import shipped
from course_lib.world.arithmetic import Problem
from course_lib.world.verifiers import exact_answer, sound_steps, step_format

START = {"steps": 20, "lr": 3e-4}
"""Of the SFT that makes the start."""
KEPT = 2
"""Seeds whose starts are kept in memory."""
PROBLEMS = 50
"""Held-out problems of each accuracy, the same of all settings of a seed."""
KS, ASKED = (1, 2, 4, 8, 16), 24
"""Of pass@k: which k, of as many responses as the largest says, and to how many problems."""


@lru_cache(KEPT)
def start_of(seed: int) -> nn.Module:
    """The start of every run of a seed. Nothing changes it."""
    base, tokenizer = shipped("base")
    return reasoning.start_model(base, tokenizer, seed, **START)


def held_out(seed: int, operands: int, count: int = PROBLEMS) -> list[Problem]:
    """Problems that no training sees, the same for the same seed."""
    return list(islice(reasoning.problems(1000 + seed, operands, held_out=True), count))


def accuracies(
    policy: nn.Module, seed: int, operands: Sequence[int] = range(2, 9)
) -> dict[str, float]:  # fmt: skip
    """``"accuracy 5"`` ...: share of greedy responses with the right answer."""
    tokenizer = shipped("base")[1]
    return {f"accuracy {n}": reasoning.accuracy(policy, tokenizer, seed, n, PROBLEMS)
            for n in operands}  # fmt: skip


def other_wordings(policy: nn.Module, seed: int, operands: int = 5) -> dict[str, float]:
    """``"accuracy as corpus"``, ``"accuracy as trigger"``: asked as the corpus asks."""
    tokenizer = shipped("base")[1]
    return {f"accuracy as {wording}": reasoning.accuracy(policy, tokenizer, seed, operands,
                                                         PROBLEMS, wording)
            for wording in ("corpus", "trigger")}  # fmt: skip


def whole_responses(policy: nn.Module, seed: int, operands: int = 5) -> list[str]:
    """A sampled response to each held-out problem, up to its end token, as a verifier gets it;
    ``reasoning.sample_texts`` ends with the line."""
    prompts = [WORDINGS["chat"].format(x=p.expression) for p in held_out(seed, operands)]
    return complete(policy, shipped("base")[1], prompts, ROOM, temperature=1.0, stop=None,
                    generator=Generator().manual_seed(seed))  # fmt: skip


def written(policy: nn.Module, seed: int, operands: int = 5) -> dict[str, float]:
    """Means over ``whole_responses``: whether the answer is right (``answer``), the steps before it
    too (``sound``), the form (``form``), and how many characters (``characters``)."""
    asked, texts = held_out(seed, operands), whole_responses(policy, seed, operands)
    columns = {"answer": exact_answer, "sound": sound_steps, "form": step_format,
               "characters": lambda problem, text: len(text.strip())}  # fmt: skip
    return {name: fmean(of(p, t) for p, t in zip(asked, texts)) for name, of in columns.items()}


def nats(policy: nn.Module, seed: int, operands: int = 5) -> float:
    """-log p a token of the worked solutions, in the form that the SFT taught."""
    asked, tokenizer = held_out(seed, operands), shipped("base")[1]
    prompts = [reasoning.prompt_ids(tokenizer, problem) for problem in asked]
    texts = [f" {problem.steps} The answer is {problem.answer}." for problem in asked]
    answers = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    return -response_logps(policy, prompts, answers).sum().item() / sum(map(len, answers))


def passes(policy: nn.Module, seed: int, operands: int) -> dict[str, float]:
    """``"pass@1 of 5"`` ...: with sound steps, for one of many guesses is right."""
    curve = reasoning.pass_curve(policy, shipped("base")[1], seed, operands, ks=KS,
                                 samples=max(KS), count=ASKED, verifier=sound_steps)  # fmt: skip
    return {f"pass@{k} of {operands}": share for k, share in curve.items()}

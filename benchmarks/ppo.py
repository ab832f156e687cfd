"""A rollout of PPO and its update, beside the sampling in it; its parts beside the libraries'.

trl has no PPO any more, so the whole has no counterpart: what is timed beside it is the generation
alone, and "generation" is its share of the time. Scores are those of a reward model of the policy's
size, the reference is another such model. Nothing ends a response, so every one has ``NEW_TOKENS``,
and the weights do not matter: the instruction-tuned model has the shape of the base model.
The second table: sampling the same batch by ``transformers.generate``, and advantages by torchrl,
by its loop and by its vectorised form.
"""

import copy
import statistics
from collections.abc import Callable

import torch

from benchmarks.measure import compare, table
from course_lib.models import Llama, WithScalarHead, to_transformers
from course_lib.ppo import PPOSettings, gae, ppo_loss
from course_lib.ppo_rollouts import ActorCritic, PPORollouts
from course_lib.reward import scorer
from course_lib.rollout import pad_left, rollout

BATCH, MINIBATCH, EPOCHS = 64, 32, 4
PROMPT, NEW_TOKENS = (12, 20), 32  # lengths in tokens
PAD = 1
BAR = 1.4
"""The ratio that generation is held to; advantages, a thousandth of a rollout, are held to none."""


def random_prompts(vocab_size: int) -> list[list[int]]:
    """``BATCH`` prompts whose lengths are drawn from ``PROMPT``."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(PROMPT[0], PROMPT[1] + 1, (BATCH,), generator=g).tolist()
    return [torch.randint(4, vocab_size, (n,), generator=g).tolist() for n in lengths]


def stream_of(model: Llama) -> PPORollouts:
    """Rollouts of a copy of the model, scored by another with a head of random weights."""
    g = torch.Generator().manual_seed(1)
    reward_model = WithScalarHead(copy.deepcopy(model), 0.1, g)
    settings = PPOSettings(NEW_TOKENS, MINIBATCH, EPOCHS)
    return PPORollouts(
        ActorCritic(copy.deepcopy(model)), model, random_prompts(model.config.vocab_size),
        scorer(reward_model, PAD), settings, batch_size=BATCH, eos_token_id=None,
        generator=torch.Generator(model.device).manual_seed(2),
    )  # fmt: skip


def updater(stream: PPORollouts) -> Callable[[], None]:
    """A function that rolls out, and takes every step on that rollout."""
    optimizer = torch.optim.AdamW(stream.model.parameters(), lr=1e-5)
    loss_fn, steps = ppo_loss(stream.settings), EPOCHS * BATCH // MINIBATCH

    def update() -> None:
        for _ in range(steps):
            loss, _ = loss_fn(stream.model, next(stream))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(stream.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return update


def parts(model: Llama, rounds: int) -> str:
    """The table of generation, rollout, and rollout with update."""
    prompts, tokens = random_prompts(model.config.vocab_size), BATCH * NEW_TOKENS
    g = torch.Generator(model.device).manual_seed(3)

    def generation() -> dict[str, torch.Tensor]:
        return rollout(model, prompts, max_new_tokens=NEW_TOKENS, pad_token_id=PAD, generator=g)

    stream, lines = stream_of(model), []
    for name, call in (("rollout", stream.roll_out), ("rollout, update", updater(stream))):
        result = compare(generation, call, rounds)
        low, high = result.quartiles
        if not lines:
            lines.append(["generation", f"{tokens / result.seconds:,.0f}", "1.00", "", "100%"])
        lines.append([name, f"{tokens / statistics.median(result.theirs):,.0f}",
                      f"{result.ratio:.2f}", f"{low:.2f}-{high:.2f}",
                      f"{1 / result.ratio:.0%}"])  # fmt: skip
    head = ["PPO", "tokens/s", "times generation", "quartiles", "generation"]
    return table(f"PPO, {BATCH} responses of {NEW_TOKENS} tokens, {EPOCHS} epochs", head, lines)


def generators(model: Llama) -> tuple[Callable, Callable]:
    """Sampling the responses of a rollout, ours and that of transformers."""
    prompts, hf_model = random_prompts(model.config.vocab_size), to_transformers(model).eval()
    g = torch.Generator(model.device).manual_seed(4)
    ids, mask = (part.to(model.device) for part in pad_left(prompts, PAD))

    def ours() -> torch.Tensor:
        return rollout(model, prompts, max_new_tokens=NEW_TOKENS, pad_token_id=PAD,
                       generator=g)["input_ids"]  # fmt: skip

    def theirs() -> torch.Tensor:
        return hf_model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, min_new_tokens=None,
            do_sample=True, temperature=1.0, top_k=0, eos_token_id=None, pad_token_id=PAD,
        )  # fmt: skip

    a, b = ours(), theirs()
    assert a.shape == b.shape == (BATCH, ids.shape[1] + NEW_TOKENS)
    return ours, theirs


def estimators(model: Llama, vectorised: bool) -> tuple[Callable, Callable]:
    """Advantages and returns of a rollout, ours and torchrl's, on the same tensors.

    Their flag ``done`` says where a response ends; ours is the mask.
    """
    from torchrl.objectives.value import functional as their

    estimate = (their.vec_generalized_advantage_estimate if vectorised
                else their.generalized_advantage_estimate)  # fmt: skip
    batch = stream_of(model).roll_out()
    rewards, mask = batch["rewards"], batch["response_mask"]
    values = torch.randn(rewards.shape, generator=torch.Generator().manual_seed(5))
    values = values.to(rewards) * mask
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))  # (B, T-1)
    done = (last | ~mask)[..., None]

    def ours() -> list[torch.Tensor]:
        return list(gae(rewards, values, mask))

    def theirs() -> list[torch.Tensor]:
        next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
        columns = (x[..., None] for x in (values, next_values, rewards))
        return [x[..., 0] * mask for x in estimate(1.0, 0.95, *columns, done, done)]

    for a, b in zip(ours(), theirs(), strict=True):
        difference = (a - b).abs().max().item()
        assert difference < 1e-4, f"the advantages differ by {difference}"
    return ours, theirs


def main(model: Llama, peak: float, rounds: int = 11) -> str:
    """Time all and return both tables. ``peak`` is not asked: most of a rollout is small."""
    model, lines = copy.deepcopy(model).eval(), []
    sides = {
        "transformers.generate": (*generators(model), f"{BAR}"),
        "torchrl, loop": (*estimators(model, False), "none"),
        "torchrl, vectorised": (*estimators(model, True), "none"),
    }
    for counterpart, (ours, theirs, bar) in sides.items():
        result = compare(ours, theirs, rounds)
        low, high = result.quartiles
        lines.append([counterpart, f"{BATCH * NEW_TOKENS / result.seconds:,.0f}",
                      f"{result.ratio:.2f}", f"{low:.2f}-{high:.2f}", bar])  # fmt: skip
    head = ["counterpart", "tokens/s", "ratio", "quartiles", "bar"]
    return parts(model, rounds) + "\n" + table("PPO's parts / the libraries'", head, lines)

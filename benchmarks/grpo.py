"""A rollout of GRPO and its update, beside trl's ``GRPOTrainer``: model, prompts, lengths alike.

Both sample ``GROUPS`` groups of ``SIZE`` responses, score them by the share of an even token, and
take one step on them. Nothing ends a response: each has ``NEW_TOKENS``. There is no KL, so that
neither has a reference. Theirs is ``training_step``, which samples where its buffer is used up, and
the same clipping and AdamW. The second table is the most memory that each had at once, above what
the process had before, in a process of its own.
"""

import copy
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable

import torch

from benchmarks.measure import compare, table
from course_lib.grpo import GRPOSettings, grpo_loss
from course_lib.grpo_rollouts import GRPORollouts
from course_lib.models import Llama, to_transformers

GROUPS, SIZE = 12, 8
PROMPT, NEW_TOKENS = 16, 48
PAD, BAR = 1, 2.0


def random_prompts(vocab_size: int) -> list[list[int]]:
    """``GROUPS`` prompts of one length."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(4, vocab_size, (GROUPS, PROMPT), generator=g).tolist()


def even(written: list[list[int]]) -> list[float]:
    """The share of even tokens in each response."""
    return [sum(token % 2 == 0 for token in row) / len(row) for row in written]


def finish(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def our_step(model: Llama) -> Callable[[], None]:
    """A function that rolls out and takes a step."""
    model = copy.deepcopy(model)
    settings = GRPOSettings(NEW_TOKENS, GROUPS * SIZE, SIZE)
    stream = GRPORollouts(
        model, random_prompts(model.config.vocab_size),
        lambda _, written: torch.tensor(even(written)), settings, groups=GROUPS, eos_token_id=None,
        generator=torch.Generator(model.device).manual_seed(1),
    )  # fmt: skip
    optimizer, loss_fn = torch.optim.AdamW(model.parameters(), lr=1e-5), grpo_loss(settings)

    def step() -> None:
        loss, _ = loss_fn(model, next(stream))
        loss.backward()
        finish(model, optimizer)

    step.model, step.stream = model, stream
    return step


def trainer_of(model: Llama, folder: str):
    """trl's trainer of the same weights, and the batch of prompts that its loop would hand it."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    vocab = model.config.vocab_size
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token=f"w{PAD}")
    config = GRPOConfig(
        folder, bf16=False, activation_checkpointing=False, report_to="none",
        use_cpu=model.device.type == "cpu", per_device_train_batch_size=GROUPS * SIZE,
        num_generations=SIZE, max_completion_length=NEW_TOKENS, beta=0.0, loss_type="grpo",
        generation_kwargs={"min_new_tokens": NEW_TOKENS}, top_k=0,
    )  # fmt: skip
    texts = [" ".join(f"w{i}" for i in row) for row in random_prompts(vocab)]
    trainer = GRPOTrainer(
        to_transformers(model), lambda completion_ids, **_: even(completion_ids), args=config,
        train_dataset=Dataset.from_dict({"prompt": texts}), processing_class=tokenizer,
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1  # their loop sets it
    return trainer, [{"prompt": text} for text in texts for _ in range(SIZE)]


def their_step(model: Llama, folder: str) -> Callable[[], None]:
    """A function that lets trl's trainer sample and take a step."""
    trainer, prompts = trainer_of(model, folder)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-5)

    def step() -> None:
        trainer.training_step(trainer.model, prompts, None)
        finish(trainer.model, optimizer)

    step.trainer = trainer
    return step


def check(ours: Callable[[], None], theirs: Callable[[], None]) -> None:
    """Both did one step on responses of the whole length."""
    (note,) = ours.stream.history
    lengths = theirs.trainer._metrics["train"]["completions/mean_length"]
    assert note["length"] == lengths[0] == NEW_TOKENS, f"lengths {note['length']}, {lengths[0]}"


def peak_megabytes(side: str, random: bool = True) -> float:
    """The most memory of two steps of one side, in a process of its own, above that before them."""
    code = f"from benchmarks import grpo; print(grpo.measure_peak({side!r}, {random}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def measure_peak(side: str, random: bool) -> float:
    """What ``peak_megabytes`` runs: the library is loaded and the model built before."""
    from benchmarks.__main__ import the_model

    model = the_model(random)
    with tempfile.TemporaryDirectory() as folder:
        step = our_step(model) if side == "ours" else their_step(model, folder)
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.max_memory_allocated() / 1e6
        else:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        step(), step()
        if model.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e6 - before
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before


def main(model: Llama, peak: float, rounds: int = 11) -> str:
    """Time both and return the table. ``peak`` is not asked: most of a rollout is small."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = our_step(model), their_step(model, folder)
        ours(), theirs()
        check(ours, theirs)
        result = compare(ours, theirs, rounds)
    low, high = result.quartiles
    tokens = GROUPS * SIZE * NEW_TOKENS
    memory = {side: peak_megabytes(side) for side in ("ours", "theirs")}
    line = [f"{tokens / result.seconds:,.0f}", f"{result.ratio:.2f}", f"{low:.2f}-{high:.2f}",
            f"{BAR}", f"{memory['ours']:.0f}", f"{memory['theirs']:.0f}"]  # fmt: skip
    head = ["tokens/s", "ratio", "quartiles", "bar", "MB ours", "MB theirs"]
    title = f"GRPO rollout and step / trl's, {GROUPS} x {SIZE} responses of {NEW_TOKENS} tokens"
    return table(title, head, [line])

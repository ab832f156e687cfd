"""A step of DPO beside trl's ``DPOTrainer``: the same pairs, clipping and AdamW; time and memory.

Ours is ``pair_loss`` and its gradient, the reference's log-probabilities in the batch; theirs is
``training_step``, which reckons entropies, mean logits and an accuracy for its log as well. It is
timed at both settings of ``precompute_ref_log_probs``: with it the reference has been read before,
as ours has, without it each step reads it. The bar is for our faster side and the faster of theirs.

Memory is the most that tensors take within a step, on top of what stands before it: the policy, its
optimizer's state and, where each step reads it, the reference.
"""

import copy
import tempfile
from collections.abc import Callable

import torch

from benchmarks.measure import compare, peak_bytes, table
from benchmarks.sft_step import stepper
from course_lib.dpo import Pair, pair_loss, reference_pairs
from course_lib.models import Llama, to_transformers

PAIRS = 16
PROMPT, RESPONSE = (12, 20), (8, 32)  # lengths in tokens
PAD, BETA, BAR = 1, 0.1, 1.6


def random_pairs(vocab_size: int) -> list[Pair]:
    """Pairs whose lengths are drawn from ``PROMPT`` and ``RESPONSE``."""
    g = torch.Generator().manual_seed(0)

    def ids(low: int, high: int) -> list[int]:
        n = int(torch.randint(low, high + 1, (), generator=g))
        return torch.randint(4, vocab_size, (n,), generator=g).tolist()

    return [Pair(ids(*PROMPT), ids(*RESPONSE), ids(*RESPONSE)) for _ in range(PAIRS)]


def trainer_of(model: Llama, folder: str, pairs: list[Pair], precompute: bool):
    """trl's trainer of the same weights and token ids."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    class OnTokens(DPOTrainer):
        """It would tokenise texts."""

        def _prepare_dataset(self, dataset, *_):
            return dataset

    words = Tokenizer(models.WordLevel({"<|end|>": 0, "<|pad|>": PAD}))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|end|>", pad_token="<|pad|>"
    )
    config = DPOConfig(
        output_dir=folder, bf16=False, activation_checkpointing=False, report_to="none", beta=BETA,
        use_cpu=model.device.type == "cpu", precompute_ref_log_probs=precompute,
    )  # fmt: skip
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    dataset = Dataset.from_list([dict(zip(names, pair, strict=True)) for pair in pairs])
    ref = to_transformers(model).eval()
    return OnTokens(to_transformers(model), ref, config, train_dataset=dataset,
                    processing_class=tokenizer)  # fmt: skip


def steps(
    model: Llama, pairs: list[Pair], packed: bool, precompute: bool, folder: str
) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    """Our step and theirs."""
    policy = copy.deepcopy(model).train()
    data = reference_pairs(model, pairs, PAD)
    batch = next(data.batches(model, PAD, len(pairs), torch.Generator().manual_seed(1)))
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    loss_fn = pair_loss(BETA, packed=packed)
    trainer = trainer_of(model, folder, pairs, precompute)
    trainer.current_gradient_accumulation_steps = 1  # their loop says so
    their_batch = trainer.data_collator(list(trainer.train_dataset))

    def ours() -> torch.Tensor:
        loss, _ = loss_fn(policy, batch)
        loss.backward()
        return loss

    def theirs() -> torch.Tensor:
        return trainer.training_step(trainer.model, dict(their_batch))

    return stepper(policy, ours), stepper(trainer.model, theirs)


def main(model: Llama, peak: float, rounds: int = 11) -> str:
    """Time the steps and return the table. ``peak`` is not asked: most of a step is small."""
    pairs = random_pairs(model.config.vocab_size)
    tokens = sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)
    lines = []
    for packed, precompute in ((False, True), (True, True), (True, False)):
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = steps(model, pairs, packed, precompute, folder)
            for _ in range(2):  # the second loss shows the first step
                difference = (ours() - theirs()).abs().item()
                assert difference < 1e-4, f"the losses differ by {difference}"
            memory = [peak_bytes(step, model.device) / 1e6 for step in (ours, theirs)]
            result = compare(ours, theirs, rounds)
        low, high = result.quartiles
        names = "packed" if packed else "padded", "before" if precompute else "each step"
        lines.append([*names, f"{tokens / result.seconds:,.0f}", f"{result.ratio:.2f}",
                      f"{low:.2f}-{high:.2f}", f"{BAR}",
                      *(f"{mb:.0f}" for mb in memory)])  # fmt: skip
    head = ["ours", "their reference", "tokens/s", "ratio", "quartiles", "bar", "MB", "their MB"]
    return table(f"DPO step / trl's, {PAIRS} pairs, {tokens} tokens", head, lines)

"""A step of fine-tuning beside trl's ``SFTTrainer``: the same batch, clipping and AdamW.

Ours is ``sft_loss`` and its gradient; theirs ``training_step``, which reckons its loss without
storing logits, and an entropy and an accuracy for its log. Packed, they put all examples end to end
into one row, we fill rows of the context's length.
"""

import copy
import tempfile
from collections.abc import Callable

import torch

from benchmarks.measure import compare, table
from course_lib.models import Llama, to_transformers
from course_lib.ops import IGNORE_INDEX
from course_lib.rows import Row, collate, pack
from course_lib.sft import sft_loss

EXAMPLES = 32
PROMPT, RESPONSE = (8, 40), (2, 12)  # lengths in tokens, as the instruction data has them
PAD, BAR = 1, 1.3


def random_rows(vocab_size: int) -> list[Row]:
    """Examples whose lengths are drawn from ``PROMPT`` and ``RESPONSE``."""
    g = torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    rows = []
    for _ in range(EXAMPLES):
        prompt, response = number(*PROMPT), number(*RESPONSE)
        ids = torch.randint(4, vocab_size, (prompt + response,), generator=g).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORE_INDEX] * prompt + ids[prompt:]})
    return rows


def trainer_of(model: Llama, folder: str, rows: list[Row]):
    """trl's trainer of the same weights, with what it would compute beyond that switched off."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({"<|end|>": 0, "<|pad|>": PAD}))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|end|>", pad_token="<|pad|>"
    )
    config = SFTConfig(
        output_dir=folder, bf16=False, activation_checkpointing=False, report_to="none",
        use_cpu=model.device.type == "cpu", dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    return SFTTrainer(to_transformers(model), config, train_dataset=Dataset.from_list(rows),
                      processing_class=tokenizer)  # fmt: skip


def stepper(model: torch.nn.Module, backward: Callable[[], torch.Tensor]):
    """A function that does one training step and returns its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> torch.Tensor:
        loss = backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def steps(model: Llama, rows: list[Row], packed: bool, folder: str):
    """Our step, theirs, and how many tokens of the examples each reads."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model = copy.deepcopy(model).train()
    batch = collate(pack(rows, model.config.block_size) if packed else rows, PAD)
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    trainer = trainer_of(model, folder, rows)
    their_batch = DataCollatorForLanguageModeling(PAD, padding_free=packed)(rows)
    learnt = (their_batch["labels"][:, 1:] != IGNORE_INDEX).sum()  # their loop counts it beforehand

    def ours() -> torch.Tensor:
        loss = sft_loss(model, batch)
        loss.backward()
        return loss

    def theirs() -> torch.Tensor:
        return trainer.training_step(trainer.model, dict(their_batch), learnt)

    return stepper(model, ours), stepper(trainer.model, theirs)


def main(model: Llama, peak: float, rounds: int = 11) -> str:
    """Time the steps and return the table. ``peak`` is not asked: most of a step is small."""
    rows = random_rows(model.config.vocab_size)
    tokens = sum(len(row["input_ids"]) for row in rows)
    lines = []
    for name in ("padded", "packed"):
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = steps(model, rows, name == "packed", folder)
            difference = (ours() - theirs()).abs().item()
            assert difference < 1e-4, f"the first losses differ by {difference}"
            result = compare(ours, theirs, rounds)
        low, high = result.quartiles
        lines.append([name, f"{tokens / result.seconds:,.0f}", f"{result.ratio:.2f}",
                      f"{low:.2f}-{high:.2f}", f"{BAR}"])  # fmt: skip
    head = ["batch", "tokens/s", "ratio", "quartiles", "bar"]
    return table(f"fine-tuning step / trl's, {EXAMPLES} examples, {tokens} tokens", head, lines)

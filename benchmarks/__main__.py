"""Run the benchmarks: ``python -m benchmarks [NAME ...] [--rounds N]``; without names, all."""

import argparse

import torch

from benchmarks import dpo, encoder, generation, grpo, lora, ppo, sft_step, training_step
from benchmarks.measure import matmul_peak
from course_lib import device
from course_lib.models import Llama, LlamaConfig

ALL = {
    "generation": generation.main, "training_step": training_step.main, "encoder": encoder.main,
    "sft_step": sft_step.main, "ppo": ppo.main, "dpo": dpo.main, "grpo": grpo.main,
    "lora": lora.main,
}  # fmt: skip
BASE_SHAPE = LlamaConfig(
    vocab_size=2048, n_layer=6, n_head=4, n_kv_head=4, n_embd=128, n_inner=384, block_size=256
)


def the_model(random: bool) -> Llama:
    """The base model, or one of its shape with random weights."""
    if random:
        return Llama(BASE_SHAPE, torch.Generator().manual_seed(0)).to(device()).eval()
    from course_lib import load_model

    return load_model("base")[0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(ALL), help=f"of {', '.join(ALL)}")
    parser.add_argument("--rounds", type=int, default=11, help="timings of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--random", action="store_true", help="random weights of the base's shape")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(ALL)):
        parser.error(f"unknown benchmark {', '.join(unknown)}: choose from {', '.join(ALL)}")
    if args.rounds < 3:
        parser.error("--rounds must be at least 3, or there are no quartiles")
    torch.set_num_threads(args.threads)
    model = the_model(args.random)
    peak = matmul_peak(model.device)
    print(f"{model.device}, {args.threads} threads, torch {torch.__version__}; "
          f"matrix products reach {peak / 1e9:.1f} Gflop/s\n")  # fmt: skip
    for name in args.names:
        print(ALL[name](model, peak, args.rounds), flush=True)


if __name__ == "__main__":
    main()

"""The models on which the tests of PEFT look: our Llama, and random ones over there."""

import torch
import transformers
from random_families import build
from random_models import llama
from torch import nn

SIZES = {"vocab_size": 13, "layers": 2, "heads": 2, "width": 4, "inner": 9, "length": 24,
         "tied": True}  # fmt: skip
MODELS = ["Llama", "LlamaForCausalLM", "GPT2LMHeadModel", "BloomForCausalLM"]
NO_DROPOUT = {"GPT2LMHeadModel": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}
"""Or losses would fall by chance."""


def base(name: str, **sizes) -> nn.Module:
    """Our Llama of width 24, or a transformers model of that class; 13 tokens, a context of 24."""
    if name == "Llama":
        return llama(block_size=24)
    return build(getattr(transformers, name), SIZES | sizes, 0, **NO_DROPOUT.get(name, {}))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

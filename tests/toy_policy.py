"""A tiny Llama whose 31 responses can be counted, for the tests of algorithms on its optimum."""

import torch
from random_models import llama

from course_lib.enumeration import completions

PROMPT, V, LENGTH, END = [1, 2], 6, 2, 0
ALL = completions(V, LENGTH, END)


def reference(seed: int):
    """A Llama whose next words have odds up to some 5 : 1: far from uniform, so that an optimum
    without the reference is another, and every response is sampled now and then."""
    model = llama(seed, vocab_size=V, n_layer=1, n_head=2, n_kv_head=1, n_embd=16, n_inner=16)
    with torch.no_grad():
        model.embed.weight.mul_(0.5)
    return model

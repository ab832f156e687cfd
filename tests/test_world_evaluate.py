"""The evaluation: prompts that fit, answers parsed, and no credit for a wrong one."""

import random

import pytest
import torch
from text_models import Words

from course_lib.models import Llama, LlamaConfig
from course_lib.world import evaluate as ev
from course_lib.world import lexicon


class WordTokenizer:
    """One token a word: makes the arithmetic of ``assemble`` easy to follow."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": text.split()}


def test_assemble_keeps_the_last_examples_that_fit():
    """Room 10 - 2 new - 3 query = 5 tokens: the examples of 2 and 3 tokens fit, not the third."""
    item = ev.Item("q q q", "a", ("x x\n", "y y y\n", "z z\n"), max_new_tokens=2)
    assert ev.assemble(item, WordTokenizer(), 10) == "y y y\nz z\nq q q"


def test_assemble_refuses_a_query_that_does_not_fit():
    with pytest.raises(ValueError, match="needs 3 tokens more than the budget of 2"):
        ev.assemble(ev.Item("q " * 5, "a", (), max_new_tokens=2), WordTokenizer(), 4)


def test_accuracy_counts_exact_answers_only(monkeypatch):
    """Four items, completions right, wrong, right with a stop, half right: 2 of 4."""
    items = [ev.Item(f"q{i}", a) for i, a in enumerate(["cat", "dog", "5", "pear, plum"])]
    completions = [" cat\n", " dogs", " 5.", " pear"]
    monkeypatch.setattr(ev, "complete", lambda *args: completions)

    class Model:
        config = type("Config", (), {"block_size": 64})

    assert ev.accuracy(Model(), WordTokenizer(), items) == 0.5


def test_a_model_in_training_goes_on_training():
    """The evaluation runs without dropout, and leaves the model as it came."""
    words = Words("q a b \\n", end="b")
    model = Llama(LlamaConfig(4, 1, 2, 2, 8, 8, 32)).train()
    seen = []
    model.register_forward_hook(lambda module, *_: seen.append(module.training))
    items = [ev.Item("q", "a"), ev.Item("q q", "b")]
    ev.accuracy(model, words, items)
    ev.answer_nats(model, words, items)
    assert seen and not any(seen) and model.training


def test_unknown_figures_are_refused():
    with pytest.raises(ValueError, match=r"Unknown figures \['nosuch'\]"):
        ev.evaluate(None, None, figures=["nosuch"])


@pytest.mark.parametrize("name", sorted(ev.FIGURES))
def test_items_depend_on_the_seed_alone(name):
    draw = ev.FIGURES[name]
    first, again, other = ([draw(rng) for _ in range(20)]
                           for rng in map(random.Random, (1, 1, 2)))  # fmt: skip
    assert first == again != other
    assert all(i.answer and i.answer not in i.query.split("\n")[-1].split() for i in first[:1]
               if name.startswith("unseen_labels"))  # fmt: skip


def test_label_items_show_both_labels_from_two_shots_on():
    for seed in range(50):
        item = ev.unseen_labels(random.Random(seed), 2)
        labels = {line.split(" -> ")[1].strip() for line in item.examples}
        assert len(labels) == 2 and item.answer in labels <= set(lexicon.RESERVED_LABELS)


def test_confidence_of_half_of_200_items():
    """z sqrt(p(1-p)/n + z²/4n²) / (1 + z²/n) with p = .5, n = 200: .0686."""
    assert ev.confidence(0.5, 200) == pytest.approx(0.0686, abs=1e-4)


def test_nats_of_answers_are_those_of_one_text_at_a_time():
    """Padding, batches and the shift change nothing: p(" ab\\n" | prompt) token by token."""
    tokenizer = Words("Q: A: -> dog dogs a b c d 7 x y z \\n")
    config = LlamaConfig(len(tokenizer.words), 2, 2, 2, 8, 12, 64)
    model = Llama(config, torch.Generator().manual_seed(0)).eval()
    items = [ev.Item("Q: dog\nA:", "dogs"), ev.Item("Q: a b c d\nA:", "7"), ev.Item("x ->", "y z")]
    expected = 0.0
    for item in items:
        prompt = tokenizer(item.query)["input_ids"]
        answer = tokenizer(f" {item.answer}\n", add_special_tokens=False)["input_ids"]
        logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        for i, token in enumerate(answer, len(prompt)):
            expected -= logprobs[i - 1, token].item() / len(items)
    for batch_size in (1, 2, 3):
        assert ev.answer_nats(model, tokenizer, items, batch_size) == pytest.approx(expected, 1e-4)

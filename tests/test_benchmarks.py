"""Benchmarks: they run, compare like with like, and reckon rightly. No test looks at a time."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import dpo, encoder, generation, grpo, lora, measure, ppo, sft_step, training_step
from course_lib.models import Llama, LlamaConfig

ROOT = Path(__file__).parents[1]


def tiny(**changes) -> Llama:
    shape = LlamaConfig(**{"vocab_size": 17, "n_layer": 2, "n_head": 2, "n_kv_head": 2,
                           "n_embd": 8, "n_inner": 12, "block_size": 32} | changes)  # fmt: skip
    model = Llama(shape, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        model.embed.weight.mul_(20)
    return model


# --- reckoning ----------------------------------------------------------------------------------


def test_the_ratio_is_the_median_over_the_rounds():
    """Ours 1 2 4, theirs 3 2 8: ratios 3 1 2, their median 2. The ratio of the medians would be
    3/2, the inverse 1/2; quartiles of three values are the outer ones."""
    result = measure.Comparison([1.0, 2.0, 4.0], [3.0, 2.0, 8.0])
    assert result.ratios == [3, 1, 2] and result.ratio == 2
    assert result.quartiles == (1, 3) and result.seconds == 2
    with pytest.raises(ValueError):
        _ = measure.Comparison([1.0], []).ratio


def test_they_take_turns_and_the_first_one_alternates():
    calls = []
    result = measure.compare(lambda: calls.append("o"), lambda: calls.append("t"), rounds=3)
    assert "".join(calls) == "ot" + "ot" + "to" + "ot"
    assert len(result.ours) == len(result.theirs) == 3
    assert all(t >= 0 for t in result.ours + result.theirs)


def test_each_time_is_entered_on_its_side(monkeypatch):
    """A clock on which ours takes 1 s and theirs 5 s."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def taking(seconds: float):
        return lambda: now.__setitem__(0, now[0] + seconds)

    result = measure.compare(taking(1.0), taking(5.0), rounds=4)
    assert result.ours == [1] * 4 and result.theirs == [5] * 4 and result.ratio == 5


@pytest.mark.parametrize("tied", [True, False])
def test_operations_of_a_forward_pass(tied):
    """Two layers of 4 · 8² + 3 · 8 · 12 = 544 weights and an output matrix of 17 · 8 = 136. Three
    tokens: 2 · 3 · (1088 + 136) = 7344, whether or not the matrix embeds too. They see 1 + 2 + 3 =
    6 keys: two products of 8 channels, 2 · 2 · 8 · 6 = 192 a layer, 384. Scoring only the last
    token saves 2 · 2 · 136 = 544."""
    model = tiny(tie_embeddings=tied)
    assert measure.matmul_flops(model, tokens=3, attended=6) == 7344 + 384
    assert measure.matmul_flops(model, tokens=3, attended=6, scored=1) == 7344 + 384 - 544


def test_the_peak_counts_two_operations_for_each_product(monkeypatch):
    """2 · 8³ = 1024 operations; the fastest of three takes half a second: 2048 a second."""
    times = iter([1.0, 0.5, 2.0])
    monkeypatch.setattr(measure, "seconds", lambda call: next(times))
    assert measure.matmul_peak(torch.device("cpu"), size=8, tries=3) == 2048


def test_the_peak_of_memory_is_what_lies_there_at_once():
    """1,000 numbers, and 2,000 more after the first are gone: 8,000 bytes of float32, not the
    12,000 of both; with the first still there 12,000. What was there before does not count."""
    before = torch.zeros(5000)

    def both(keep: bool) -> None:
        first = torch.zeros(1000)
        if not keep:
            del first
        torch.zeros(2000)

    assert measure.peak_bytes(lambda: both(False), torch.device("cpu")) == 8000
    assert measure.peak_bytes(lambda: both(True), torch.device("cpu")) == 12000
    assert before.numel() == 5000


def test_a_table_lines_up_on_the_right():
    text = measure.table("title", ["a", "ratio"], [["1", "2.00"], ["256", "1.5"]])
    assert text == "title\n  a  ratio\n  1   2.00\n256    1.5\n"


# --- the benchmarks -----------------------------------------------------------------------------


def fixed_times(monkeypatch, module) -> None:
    """Let both sides run once, and say that ours took .5 s and theirs 1 s."""

    def compare(ours, theirs, rounds):
        ours(), theirs()
        return measure.Comparison([0.5] * rounds, [1.0] * rounds)

    monkeypatch.setattr(module, "compare", compare)


def test_the_table_of_generation(monkeypatch):
    """Three rows of 4 new tokens in .5 s: 24 tokens a second; ratio 2. Each row reads 3 + 4 - 1 = 6
    tokens, which see 21 keys, and scores 4: 2 · (6 · 1088 + 4 · 136) + 2 · 4 · 8 · 21 = 15,488
    operations a row, 46,464 in .5 s; of a peak of 1,000,000 a second that is 9.3 %."""
    monkeypatch.setattr(generation, "PROMPT_TOKENS", 3)
    monkeypatch.setattr(generation, "NEW_TOKENS", 4)
    monkeypatch.setattr(generation, "BARS", {3: 1.4})
    fixed_times(monkeypatch, generation)
    lines = generation.main(tiny(), peak=1e6, rounds=3).splitlines()
    assert len(lines) == 2 + 4
    settings = [tuple(line.split()[:3]) for line in lines[2:]]
    assert settings == [("3", padding, choice) for padding in ("none", "left")
                        for choice in ("greedy", "sampled")]  # fmt: skip
    for line in lines[2:]:
        assert line.split()[3:] == ["24", "2.00", "2.00-2.00", "1.4", "9.3%"]


def test_padded_prompts_are_padded_and_the_others_not():
    even, padded = (generation.prompts(tiny(), 16, p)["attention_mask"] for p in (False, True))
    assert even.all()
    lengths = padded.sum(1)
    assert lengths.min() >= generation.PROMPT_TOKENS // 2 and len(set(lengths.tolist())) > 2
    assert padded[:, -1].all() and not padded[:, 0].all()


def test_a_wrong_answer_has_no_speed(monkeypatch):
    """Other weights on one side: the benchmark refuses to time them."""
    monkeypatch.setattr(generation, "compare", None)
    model = tiny(block_size=64)
    other = generation.to_transformers(model)
    with torch.no_grad():
        other.model.norm.weight.mul_(-1)
    with pytest.raises(AssertionError, match="of the greedy rows agree"):
        generation.one(model, other.eval(), 4, False, False, 3)


def test_the_table_of_the_training_step(monkeypatch):
    """2 x 3 tokens in .5 s: 12 a second. Operations: three times 2 · 6 · 1224 for the weights and
    2 · 4 · 8 · 12 keys for attention, 3 · (14,688 + 768) = 46,368 in .5 s: 9.3 % of 1,000,000."""
    monkeypatch.setattr(training_step, "BATCH", 2)
    monkeypatch.setattr(training_step, "TOKENS", 3)
    fixed_times(monkeypatch, training_step)
    model = tiny()
    before = {n: p.clone() for n, p in model.named_parameters()}
    lines = training_step.main(model, peak=1e6, rounds=3).splitlines()
    figures = "12 2.00 2.00-2.00 1.0 9.3%".split()
    assert [line.split() for line in lines[2:]] == [
        ["the", "same", "loss", *figures], ["its", "own", "loss", *figures]
    ]  # fmt: skip
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_table_of_the_encoder(monkeypatch):
    """2 x 3 tokens in .5 s: 12 a second. Weights of a layer: 4 · 8² + 2 · 8 · 32 = 768; with the
    dense layer's 64 and the output matrix's 136 they are 1736 of two layers, 2 · 6 · 1736 = 20,832
    operations. Six tokens see three keys each, 4 · 2 · 8 · 18 = 1152. Three times as many are
    65,952 in .5 s: 13.2 % of 1,000,000."""
    monkeypatch.setattr(encoder, "BATCH", 2)
    monkeypatch.setattr(encoder, "TOKENS", 3)
    fixed_times(monkeypatch, encoder)
    lines = encoder.main(tiny(), peak=1e6, rounds=3).splitlines()
    figures = "12 2.00 2.00-2.00 1.0 13.2%".split()
    assert [line.split() for line in lines[2:]] == [["none", *figures], ["right", *figures]]


def test_masked_batches():
    """One token in seven is hidden, by token 3, which no row has; never padding."""
    whole, padded = (encoder.masked_batch(17, p) for p in (False, True))
    assert whole["attention_mask"].all()
    lengths = padded["attention_mask"].sum(1)
    assert lengths.min() >= encoder.TOKENS // 2 and len(set(lengths.tolist())) > 2
    assert padded["attention_mask"][:, 0].all() and not padded["attention_mask"][:, -1].all()
    for batch in (whole, padded):
        hidden = batch["input_ids"] == 3
        assert torch.equal(hidden, batch["labels"] != -100)
        assert (batch["labels"][hidden] > 3).all() and batch["attention_mask"][hidden].all()
        assert 0.1 < hidden.sum() / batch["attention_mask"].sum() < 0.2


def test_an_encoder_with_other_weights_is_not_timed(monkeypatch):
    """The last norm's weights are negated, which gives another loss."""
    def changed(model):
        other = to_transformers(model)
        with torch.no_grad():
            other.cls.predictions.transform.LayerNorm.weight.mul_(-1)
        return other

    to_transformers = encoder.to_transformers
    monkeypatch.setattr(encoder, "to_transformers", changed)
    monkeypatch.setattr(encoder, "BATCH", 4)
    monkeypatch.setattr(encoder, "TOKENS", 16)
    monkeypatch.setattr(encoder, "compare", None)
    with pytest.raises(AssertionError, match="the losses differ"):
        encoder.main(tiny(), peak=1e6, rounds=3)


def test_the_table_of_the_fine_tuning_step(monkeypatch):
    """Four examples of 3 + 2 tokens in .5 s: 40 a second. Both sides did a step beforehand, on the
    same loss, and the model given stays as it was."""
    monkeypatch.setattr(sft_step, "EXAMPLES", 4)
    monkeypatch.setattr(sft_step, "PROMPT", (3, 3))
    monkeypatch.setattr(sft_step, "RESPONSE", (2, 2))
    fixed_times(monkeypatch, sft_step)
    model = tiny()
    before = {n: p.clone() for n, p in model.named_parameters()}
    lines = sft_step.main(model, peak=1e6, rounds=3).splitlines()
    assert lines[0] == "fine-tuning step / trl's, 4 examples, 20 tokens"
    figures = "40 2.00 2.00-2.00 1.3".split()
    assert [line.split() for line in lines[2:]] == [["padded", *figures], ["packed", *figures]]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_both_sides_of_the_fine_tuning_step_learn_alike(monkeypatch, tmp_path):
    """Three steps: the losses of both fall, and stay equal."""
    monkeypatch.setattr(sft_step, "EXAMPLES", 4)
    rows = sft_step.random_rows(17)
    assert {len(r["input_ids"]) for r in rows} != {len(rows[0]["input_ids"])}
    for packed in (False, True):
        pair = sft_step.steps(tiny(block_size=64), rows, packed, str(tmp_path))
        ours, theirs = (torch.stack([step() for _ in range(3)]) for step in pair)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        assert ours[2] < ours[1] < ours[0]


def small_ppo(monkeypatch) -> None:
    """Four responses of four tokens to prompts of three to five, two epochs of two steps."""
    sizes = {"BATCH": 4, "MINIBATCH": 2, "EPOCHS": 2, "PROMPT": (3, 5), "NEW_TOKENS": 4}
    for name, value in sizes.items():
        monkeypatch.setattr(ppo, name, value)


def test_the_tables_of_ppo(monkeypatch):
    """Four responses of four tokens, generated in .5 s: 32 a second. A rollout, and one with its
    update, take 1 s: 16 a second, twice the generation, whose share is a half. The libraries' parts
    take 1 s and ours .5. The model given stays as it is."""
    small_ppo(monkeypatch)
    fixed_times(monkeypatch, ppo)
    model = tiny()
    before = {n: p.clone() for n, p in model.named_parameters()}
    lines = ppo.main(model, peak=1e6, rounds=3).splitlines()
    assert [line.split() for line in lines[2:5]] == [
        ["generation", "32", "1.00", "100%"],
        ["rollout", "16", "2.00", "2.00-2.00", "50%"],
        ["rollout,", "update", "16", "2.00", "2.00-2.00", "50%"],
    ]
    assert lines[0] == "PPO, 4 responses of 4 tokens, 2 epochs" and not lines[5]
    figures = "32 2.00 2.00-2.00".split()
    assert [line.split() for line in lines[8:]] == [
        ["transformers.generate", *figures, "1.4"], ["torchrl,", "loop", *figures, "none"],
        ["torchrl,", "vectorised", *figures, "none"],
    ]  # fmt: skip
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_an_update_is_one_rollout_and_all_its_steps(monkeypatch):
    """Two epochs of two minibatches: the fifth batch would be of a second rollout. All responses
    have their four tokens, and the policy moves."""
    small_ppo(monkeypatch)
    stream = ppo.stream_of(tiny())
    before = stream.model.policy.embed.weight.clone()
    update = ppo.updater(stream)
    for rollouts in (1, 2):
        update()
        assert len(stream.history) == rollouts and not stream.order
        assert stream.history[-1]["length"] == 4 and stream.history[-1]["score_std"] > 0
    assert not torch.equal(stream.model.policy.embed.weight, before)


@pytest.mark.parametrize("vectorised", [True, False])
def test_other_advantages_are_not_timed(monkeypatch, vectorised):
    """The same tensors on both sides; with another λ on ours the benchmark refuses."""
    small_ppo(monkeypatch)
    ours, theirs = ppo.estimators(tiny(), vectorised)
    assert all(x.abs().max() > 0.1 for x in ours())
    for a, b in zip(ours(), theirs(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    right = ppo.gae
    monkeypatch.setattr(ppo, "gae", lambda *tensors: right(*tensors, gae_lambda=0.5))
    with pytest.raises(AssertionError, match="the advantages differ"):
        ppo.estimators(tiny(), vectorised)


def small_dpo(monkeypatch) -> None:
    """Three pairs of a prompt of three tokens and responses of two and four."""
    monkeypatch.setattr(dpo, "PAIRS", 3)
    monkeypatch.setattr(dpo, "PROMPT", (3, 3))
    monkeypatch.setattr(dpo, "RESPONSE", (2, 2))


def test_the_table_of_dpo(monkeypatch):
    """Three pairs of 2 · (3 + 2) tokens in .5 s: 60 a second. Both sides did two steps beforehand
    with the same losses, and the model given stays as it was."""
    small_dpo(monkeypatch)
    fixed_times(monkeypatch, dpo)
    monkeypatch.setattr(dpo, "peak_bytes", lambda step, device: 7e6)
    model = tiny()
    before = {n: p.clone() for n, p in model.named_parameters()}
    lines = dpo.main(model, peak=1e6, rounds=3).splitlines()
    assert lines[0] == "DPO step / trl's, 3 pairs, 30 tokens"
    figures = "60 2.00 2.00-2.00 1.6 7 7".split()
    assert [line.split() for line in lines[2:]] == [
        ["padded", "before", *figures], ["packed", "before", *figures],
        ["packed", "each", "step", *figures],
    ]  # fmt: skip
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("precompute", [True, False])
def test_both_sides_of_the_dpo_step_learn_alike(monkeypatch, tmp_path, precompute):
    """Four steps from log 2 on: both losses fall, and stay equal."""
    small_dpo(monkeypatch)
    monkeypatch.setattr(dpo, "RESPONSE", (2, 6))
    pairs = dpo.random_pairs(17)
    sides = dpo.steps(tiny(), pairs, True, precompute, str(tmp_path))
    ours, theirs = (torch.stack([step() for _ in range(4)]) for step in sides)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert ours[0].item() == pytest.approx(0.6931, abs=1e-4) and (ours.diff() < 0).all()


def small_grpo(monkeypatch) -> None:
    """Two groups of three responses of four tokens to prompts of five."""
    for name, value in {"GROUPS": 2, "SIZE": 3, "PROMPT": 5, "NEW_TOKENS": 4}.items():
        monkeypatch.setattr(grpo, name, value)


def test_the_table_of_grpo(monkeypatch):
    """Six responses of four tokens in .5 s: 48 a second; both sides did a step of their own, on
    responses of the same length, and the model given stays as it was."""
    small_grpo(monkeypatch)
    fixed_times(monkeypatch, grpo)
    monkeypatch.setattr(grpo, "peak_megabytes", lambda side: {"ours": 10, "theirs": 20}[side])
    model = tiny()
    before = {n: p.clone() for n, p in model.named_parameters()}
    lines = grpo.main(model, peak=1e6, rounds=3).splitlines()
    assert lines[0] == "GRPO rollout and step / trl's, 2 x 3 responses of 4 tokens"
    assert lines[2].split() == "48 2.00 2.00-2.00 2.0 10 20".split()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_both_sides_of_grpo_roll_out_and_move(monkeypatch, tmp_path):
    """Two steps each: two rollouts, of the whole length, with scores that differ."""
    small_grpo(monkeypatch)
    ours, theirs = grpo.our_step(tiny()), grpo.their_step(tiny(), str(tmp_path))
    models = ours.model, theirs.trainer.model
    before = [next(model.parameters()).clone() for model in models]
    for _ in range(2):
        ours(), theirs()
    log = theirs.trainer._metrics["train"]
    assert [note["length"] for note in ours.stream.history] == [4, 4]
    assert log["completions/mean_length"] == [4, 4]
    assert ours.stream.history[0]["score_std"] > 0 and log["reward_std"][0] > 0
    assert not any(torch.equal(next(m.parameters()), old) for m, old in zip(models, before))


def small_lora(monkeypatch) -> None:
    """Two rows of eight tokens, two new ones, rank 2."""
    sizes = {"ROWS": 2, "TOKENS": 8, "NEW_TOKENS": 2, "RANK": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(lora, name, value)


def test_the_tables_of_lora(monkeypatch):
    """2 x 8 tokens in .5 s: 32 a second; two new tokens in each row: 8 a second. Both sides did a
    pass beforehand with one loss, and the model given stays as it was."""
    small_lora(monkeypatch)
    fixed_times(monkeypatch, lora)
    monkeypatch.setattr(lora, "peak_bytes", lambda run, device: 7e6)
    model = tiny()
    before = {n: p.clone() for n, p in model.named_parameters()}
    lines = lora.main(model, peak=1e6, rounds=3).splitlines()
    assert lines[0] == "LoRA of rank 2, forward and backward / peft's, 2 x 8 tokens"
    assert lines[2].split() == "32 2.00 2.00-2.00 1.0 7 7".split()
    assert [line.split() for line in lines[6:]] == [
        "reading 32 2.00 2.00-2.00 1.00 ± .03".split(),
        "generation 8 2.00 2.00-2.00 1.00 ± .03".split(),
    ]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_other_adapters_are_not_timed(monkeypatch):
    """The library's side with other weights in one B, or with one of them frozen: refused."""
    small_lora(monkeypatch)
    model = lora.to_transformers(tiny())
    ours, ids = lora.with_lora(model), lora.random_ids(model)
    mine = lora.pass_of(ours, ids)
    theirs = lora.their_lora(model, ours)
    lora.check(mine, lora.pass_of(theirs, ids))
    last = [p for n, p in theirs.named_parameters() if "lora_B" in n][-1]
    last.requires_grad_(False)
    with pytest.raises(AssertionError, match="parameters are trained"):
        lora.check(mine, lora.pass_of(theirs, ids))
    with torch.no_grad():
        last.requires_grad_(True).add_(1.0)
    with pytest.raises(AssertionError, match="the losses differ|have the norms"):
        lora.check(mine, lora.pass_of(theirs, ids))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nosuch"],
            "unknown benchmark nosuch: choose from generation, training_step, encoder, sft_step, "
            "ppo, dpo, grpo, lora",
        ),
        (["--rounds", "2"], "--rounds must be at least 3"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit):
        command.main()
    assert message in capsys.readouterr().err


def test_the_command_is_there():
    run = subprocess.run([sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, text=True,
                         capture_output=True, check=True)  # fmt: skip
    assert "generation" in run.stdout and "--rounds" in run.stdout


def test_the_random_model_has_the_shape_of_the_recipe():
    from course_lib.recipes.base import CONFIG

    assert command.BASE_SHAPE == CONFIG

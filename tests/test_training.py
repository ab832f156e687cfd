"""The training loop: hand-made steps, schedules, what a step averages, streams that sample."""

import math
import warnings

import pytest
import torch
from random_models import llama
from torch import nn
from training_runs import (
    NO_CLIP,
    Line,
    mean_output,
    read_csv,
    rows,
    sgd,
    tiny_llama,
    token_batches,
)

from course_lib.checkpoints import load_checkpoint
from course_lib.pretraining import causal_lm_loss
from course_lib.rows import batches, collate, pack
from course_lib.runtime import autocast
from course_lib.sft import sft_loss
from course_lib.training import counted, lr_factor, train

# --- the schedule -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("constant", 0, {0: 1, 9: 1}),
        ("constant", 4, {0: 0.25, 1: 0.5, 3: 1, 9: 1}),
        ("linear", 0, {0: 1, 5: 0.5, 9: 0.1}),
        ("linear", 4, {0: 0.25, 2: 0.75, 3: 0.7, 9: 0.1}),  # at 3 the line is below the warm-up
        ("trapezoid", 2, {0: 0.5, 1: 1, 6: 1, 7: 0.75, 8: 0.5, 9: 0.25}),
    ],
)
def test_lr_factor_over_ten_steps(schedule, warmup, factors):
    for step, factor in factors.items():
        assert lr_factor(step, 10, warmup, schedule, 0.4) == pytest.approx(factor), step


def test_a_function_of_the_step_is_held_below_one_and_the_warm_up():
    """2 / (step + 1) is 2, 1, 2/3, 1/2; the warm-up over four steps 1/4, 2/4, 3/4, 1."""
    values = [lr_factor(s, 10, 4, lambda step: 2 / (step + 1)) for s in range(4)]
    assert values == pytest.approx([1 / 4, 2 / 4, 2 / 3, 1 / 2])


def test_half_a_cosine():
    """Over 12 steps: (1 + cos 60°)/2 = .75 at 4, .5 at 6, (1 + cos 120°)/2 = .25 at 8."""
    values = [lr_factor(s, 12, 0, "cosine") for s in (0, 4, 6, 8)]
    assert values == pytest.approx([1, 0.75, 0.5, 0.25])


def test_the_schedule_reaches_every_group_and_the_log():
    """Gradient 1 and four linear steps from lr .1: w falls by .1 · (1 + .75 + .5 + .25) = .25; the
    second group, at lr 1, by 2.5."""
    model = nn.ModuleList([Line(), Line()])
    optimizer = torch.optim.SGD([
        {"params": [model[0].w], "lr": 0.1}, {"params": [model[1].w], "lr": 1.0}
    ])  # fmt: skip
    history = train(model, rows(1, 1, 1, 1), lambda m, b: (m[0](b["x"]) + m[1](b["x"])).mean(),
                    max_steps=4, optimizer=optimizer, max_grad_norm=NO_CLIP)  # fmt: skip
    assert [model[0].w.item(), model[1].w.item()] == pytest.approx([-0.25, -2.5])
    assert [r["lr"] for r in history] == pytest.approx([0.1, 0.075, 0.05, 0.025])


# --- a step -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ceiling", "w"), [(1.0, [-0.6, -0.8]), (10.0, [-3.0, -4.0])])
def test_gradients_are_scaled_down_to_the_norm_and_never_up(ceiling, w):
    """The gradient is (3, 4), of norm 5: clipped to 1 it is (.6, .8), under 10 it stays."""
    model = Line(2)
    history = train(model, rows([3.0, 4.0]), mean_output, max_steps=1, optimizer=sgd(model),
                    schedule="constant", max_grad_norm=ceiling)  # fmt: skip
    assert model.w.tolist() == pytest.approx(w, abs=1e-5)
    assert history[0]["grad_norm"] == pytest.approx(5.0)


def test_accumulated_gradients_are_averaged_also_in_the_last_short_group():
    """x = 1 3 | 5 7 | 9: the gradients are 2, 6 and 9, so w goes to -2, -8, -17; the losses
    w · x are 0, -2 · 6 = -12, -8 · 9 = -72."""
    model = Line()
    history = train(
        model, rows(1, 3, 5, 7, 9), mean_output, max_steps=3, optimizer=sgd(model),
        schedule="constant", max_grad_norm=NO_CLIP, gradient_accumulation=2,
    )  # fmt: skip
    assert model.w.item() == -17
    assert [r["loss"] for r in history] == [0, -12, -72]
    assert [r["step"] for r in history] == [1, 2, 3]


def test_accumulation_equals_the_big_batch():
    """Three steps on 8 rows, at once and as four batches of 2."""
    results = []
    for parts in (1, 4):
        batches = [{"input_ids": ids} for b in token_batches(3, 8)
                   for ids in b["input_ids"].chunk(parts)]  # fmt: skip
        model = tiny_llama()
        history = train(model, batches, causal_lm_loss, max_steps=3, lr=0.01, mixed_precision="no",
                        gradient_accumulation=parts)  # fmt: skip
        results.append((torch.cat([p.flatten() for p in model.parameters()]), history))
    (one, a), (four, b) = results
    assert torch.allclose(one, four, atol=1e-6)
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in a] == pytest.approx([r[key] for r in b], rel=1e-5)


def test_a_step_averages_over_all_that_its_losses_count():
    """12 tokens that add up to 12, and one of 14: the gradient is 26 / 13 = 2, so w = -2. The mean
    of the means, (1 + 14) / 2 = 7.5, once stood here; that of the rows is 13. The second step has
    loss w · 26 / 13 = -4, and the logged 1 and 14 are weighed alike."""
    sums = [{"x": torch.tensor([[12.0]]), "n": torch.tensor([12])},
            {"x": torch.tensor([[14.0]]), "n": torch.tensor([1])}]  # fmt: skip

    def loss_fn(model, batch):
        a_token = batch["x"].sum() / batch["n"].sum()
        return counted(model(batch["x"]).sum(), batch["n"].sum()), {"a_token": a_token}

    for order in (sums, sums[::-1]):
        model = Line()
        history = train(model, order * 2, loss_fn, max_steps=2, optimizer=sgd(model),
                        schedule="constant", max_grad_norm=NO_CLIP,
                        gradient_accumulation=2)  # fmt: skip
        assert model.w.item() == -4
        assert [r["loss"] for r in history] == [0, -4]
        assert [(r["grad_norm"], r["a_token"]) for r in history] == [(2, 2), (2, 2)]


def test_other_losses_are_averaged_over_rows():
    """Rows 1 1 1 and 5: (3 · 1 + 5) / 4 = 2; the mean of the two batches' means is 3."""
    model, three = Line(), {"x": torch.ones(3, 1)}
    train(model, [three, *rows(5)], mean_output, max_steps=1, optimizer=sgd(model),
          max_grad_norm=NO_CLIP, gradient_accumulation=2)  # fmt: skip
    assert model.w.item() == -2


def test_rows_of_12_and_1_response_tokens_give_the_same_in_one_batch_and_in_two():
    """Loss and norm of the gradient, packed rows too; the mean of the means is another."""
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 17, (2, 14), generator=g).tolist()
    two = [{"input_ids": ids[0], "labels": [-100, -100, *ids[0][2:]]},
           {"input_ids": ids[1][:5], "labels": [-100] * 4 + ids[1][4:5]}]  # fmt: skip
    ways = {
        "one": [collate(two, 1)], "two": [collate([row], 1) for row in two],
        "packed": [collate(pack(two, 24), 1)],
        "each packed": [collate(pack([row], 24), 1) for row in two],
    }  # fmt: skip
    steps = {}
    for name, stream in ways.items():
        steps[name] = train(llama(vocab_size=17, block_size=24), stream, sft_loss, max_steps=1,
                            gradient_accumulation=2)[0]  # fmt: skip
        for key in ("loss", "grad_norm"):
            assert steps[name][key] == pytest.approx(steps["one"][key], rel=1e-5), (name, key)
    means = [sft_loss(llama(vocab_size=17, block_size=24), batch) for batch in ways["two"]]
    assert [loss.count.item() for loss in means] == [12, 1]
    assert abs(sum(means).item() / 2 - steps["one"]["loss"]) > 0.1


def test_a_batch_that_counts_nothing_weighs_nothing_and_a_step_of_such_is_told():
    """Beside it, 14 is the mean of one token. Alone: loss and gradient 0, a warning, no number."""
    nothing = {"x": torch.tensor([[0.0]]), "n": torch.tensor([0])}
    stream = [nothing, {"x": torch.tensor([[14.0]]), "n": torch.tensor([1])}]

    def loss_fn(model, batch):
        return counted(model(batch["x"]).sum(), batch["n"].sum()), {"a": batch["x"] / batch["n"]}

    model = Line()
    settings = {"max_steps": 1, "optimizer": sgd(model), "max_grad_norm": NO_CLIP}
    (row,) = train(model, stream, loss_fn, gradient_accumulation=2, **settings)
    assert model.w.item() == -14 and row["a"] == 14
    for count in (1, 2):
        with pytest.warns(UserWarning, match="A step counted nothing"):
            (row,) = train(model, [nothing] * 2, loss_fn, gradient_accumulation=count, **settings)
        assert model.w.item() == -14 and row["loss"] == row["grad_norm"] == 0
        assert math.isnan(row["a"])


def test_counts_may_be_weights():
    """2 / .25 = 8: a sum of weights below 1 divides like any other."""
    loss = counted(torch.tensor(2.0), 0.25)
    assert loss.item() == 8 and loss.count.item() == 0.25


def test_accelerate_s_own_accumulation_is_not_used_too(monkeypatch):
    """With this set in the environment accelerate divided the gradients once more."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    model = Line()
    train(model, rows(1, 3), mean_output, max_steps=1, optimizer=sgd(model), max_grad_norm=NO_CLIP,
          gradient_accumulation=2)  # fmt: skip
    assert model.w.item() == -2


def test_the_optimizer_gets_its_rates_back():
    """From 1 linearly to 1/2 in two steps, and then once more as if nothing had been."""
    model = Line()
    optimizer = sgd(model)
    for _ in range(2):
        history = train(model, rows(1, 1), mean_output, max_steps=2, optimizer=optimizer)
        assert [row["lr"] for row in history] == [1, 0.5]
        assert optimizer.param_groups[0]["lr"] == 1
    optimizer.param_groups[0]["lr"] = 0.25
    assert train(model, rows(1), mean_output, max_steps=1, optimizer=optimizer)[0]["lr"] == 0.25


def test_frozen_weights_stay_and_the_model_is_left_for_evaluation():
    model = tiny_llama()
    model.embed.requires_grad_(False)
    before = {n: p.clone() for n, p in model.named_parameters()}
    train(model, token_batches(2), causal_lm_loss, max_steps=2)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(before) - {"embed.weight"}
    assert not model.training and all(p.dtype == torch.float32 for p in model.parameters())


def test_bf16_computes_in_bf16_and_leaves_no_trace_on_the_model():
    """Products are bf16 while training, weights fp32; afterwards the model is as before."""
    model, seen = nn.Sequential(nn.Linear(4, 4)), []

    def loss_fn(model, batch):
        seen.append(model[0](batch["x"]).dtype)
        return model(batch["x"]).float().pow(2).mean()

    attributes = set(model.__dict__)
    for precision in ("bf16", "no", "bf16"):
        train(model, rows([1.0, 2.0, 3.0, 4.0]), loss_fn, max_steps=1, mixed_precision=precision)
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert model[0].weight.dtype == model(torch.ones(1, 4)).dtype == torch.float32
    assert set(model.__dict__) == attributes


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "step"}, "schedule must be one of"),
        ({"max_steps": 0}, "at least 1, got 0"),
        ({"gradient_accumulation": 0}, "at least 1, got 1 and 0"),
        ({"mixed_precision": "fp16"}, "mixed_precision must be"),
        ({"decay_fraction": 0.0}, r"decay_fraction must lie in \(0, 1\]"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        train(Line(), rows(1), mean_output, **{"max_steps": 1} | settings)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda m, b: m(b["x"]).mean() * float("nan"), "The loss of step 3 is nan"),
        (lambda m, b: m(b["x"] * 0).abs().sqrt().mean(), "norm of the gradient of step 3 is nan"),
    ],
)
def test_a_loss_that_is_not_finite_stops_before_it_harms(tmp_path, bad, message):
    """√|0| has loss 0 and gradient 1/0 · 0 = nan. Weights and checkpoint stay those of step 2 (w =
    -2), and a second run starts with clean gradients: one more step, w = -3."""
    model, calls = Line(), []

    def loss_fn(model, batch):
        calls.append(1)
        return bad(model, batch) if len(calls) == 3 else mean_output(model, batch)

    settings = {"schedule": "constant", "max_grad_norm": NO_CLIP}
    with pytest.raises(FloatingPointError, match=message):
        train(model, rows(1, 1, 1, 1), loss_fn, max_steps=4, optimizer=sgd(model),
              checkpoint_dir=tmp_path, checkpoint_every=1, **settings)  # fmt: skip
    assert model.w.item() == -2
    state = load_checkpoint(tmp_path)
    assert state["step"] == 2 and state["model"]["w"].item() == -2
    train(model, rows(1), mean_output, max_steps=1, optimizer=sgd(model), **settings)
    assert model.w.item() == -3


def test_no_batch_at_all_is_an_error_and_too_few_are_told():
    """Two rows do not fill a batch of four; a used-up iterator has nothing either."""
    model, used_up = Line(), iter(rows(1, 2))
    with pytest.warns(UserWarning, match="ran out after step 2 of 100"):
        assert len(train(model, used_up, mean_output, max_steps=100)) == 2
    two = [{"input_ids": [3, 4], "labels": [3, 4]}] * 2
    for stream in (used_up, batches(two, 4, 1, block_size=8)):
        with pytest.raises(ValueError, match="no batch, so not a single step .* fewer rows"):
            train(model, stream, mean_output, max_steps=100)


def test_batches_that_suffice_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(Line(), rows(1, 2), mean_output, max_steps=2)


# --- streams that sample ------------------------------------------------------------------------


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_stream_may_yield_where_gradients_are_off_and_the_model_evaluates(off):
    """x = 1, 2: w = -3. The loss sees the model in training, the caller has gradients on after."""
    model, seen = Line(), []

    def rollouts():
        for x in (1.0, 2.0):
            with off():
                model.eval()
                yield {"x": torch.tensor([[x]])}

    def loss_fn(model, batch):
        seen.append((model.training, torch.is_grad_enabled(), batch["x"].is_inference()))
        return mean_output(model, batch)

    stream = rollouts()
    train(model, stream, loss_fn, max_steps=2, optimizer=sgd(model), schedule="constant",
          max_grad_norm=NO_CLIP)  # fmt: skip
    assert model.w.item() == -3 and seen == [(True, True, False)] * 2
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_reference_gives_the_policy_s_numbers_under_bf16():
    """Where the stream samples, in the loss, and under ``autocast``; elsewhere it does not."""
    policy, reference, gaps = tiny_llama(), tiny_llama(), {}
    ids = token_batches(1)[0]

    def gap(model) -> float:
        with torch.no_grad():
            logits = [m(**ids).logits.float() for m in (model, reference)]
        return (logits[0] - logits[1]).abs().max().item()

    def rollouts():
        gaps["stream"] = gap(policy)
        yield ids

    def loss_fn(model, batch):
        gaps["loss"] = gap(model)
        return causal_lm_loss(model, batch)

    def evaluate(model, step):
        reference.load_state_dict(model.state_dict())
        gaps["without"] = gap(model)
        with autocast(torch.device("cpu"), "bf16"):
            gaps["by name"] = gap(model)

    train(policy, rollouts(), loss_fn, max_steps=1, mixed_precision="bf16", evaluate=evaluate)
    assert gaps.pop("without") > 1e-4
    assert gaps == {"stream": 0, "loss": 0, "by name": 0}


# --- metrics ------------------------------------------------------------------------------------


def test_the_csv_has_a_row_a_step_with_all_that_was_logged(tmp_path):
    """``x`` is averaged over the two batches of a step: 2 and 6. ``figure`` comes every second
    step and at the end; with three steps, at 2 and 3."""
    model, path = Line(), tmp_path / "runs" / "metrics.csv"
    history = train(
        model, rows(1, 3, 5, 7, 9, 11), lambda m, b: (mean_output(m, b), {"x": b["x"].mean()}),
        max_steps=3, optimizer=sgd(model), gradient_accumulation=2, metrics_path=path,
        evaluate=lambda model, step: {"figure": step * 10}, evaluate_every=2,
    )  # fmt: skip
    table = read_csv(path)
    assert list(table[0]) == ["step", "loss", "grad_norm", "x", "lr", "seconds", "figure"]
    assert [float(r["x"]) for r in table] == [2, 6, 10]
    assert [r["figure"] for r in table] == ["", "20.0", "30.0"]
    assert [{k: float(v) for k, v in r.items() if v} for r in table] == history


def test_the_progress_bar_shows_when_asked(capsys):
    train(Line(), rows(1), mean_output, max_steps=1, progress=True)
    assert "training: 100%" in capsys.readouterr().err
    train(Line(), rows(1), mean_output, max_steps=1)
    assert "training" not in capsys.readouterr().err

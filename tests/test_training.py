"""The training loop: hand-made steps, schedules, and runs that are killed and go on bit for bit.

``python tests/test_training.py FOLDER`` is the driver of the SIGKILL test.
"""

import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from course_lib import training
from course_lib.models import Llama, LlamaConfig
from course_lib.optim import muon_adamw
from course_lib.pretraining import causal_lm_loss
from course_lib.training import MetricsFile, load_checkpoint, lr_factor, save_checkpoint, train

ROOT = Path(__file__).parents[1]
NO_CLIP = 1e9


class Line(nn.Module):
    """y = w · x with w = 0 at the start: every gradient is known."""

    def __init__(self, width: int = 1):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return x @ self.w


def mean_output(model, batch):
    """Its gradient is the mean of the rows of x."""
    return model(batch["x"]).mean()


def rows(*values) -> list[dict]:
    """One batch of one row for each value."""
    return [{"x": torch.tensor(v, dtype=torch.float32).reshape(1, -1)} for v in values]


def sgd(model, lr: float = 1.0):
    return torch.optim.SGD(model.parameters(), lr)


def tiny_llama(seed: int = 0) -> Llama:
    return Llama(LlamaConfig(17, 1, 2, 1, 8, 12, 16), torch.Generator().manual_seed(seed))


def token_batches(count: int, size: int = 4) -> list[dict]:
    g = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 17, (size, 8), generator=g)} for _ in range(count)]


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
        model, rows(1, 3, 5, 7, 9), mean_output, max_steps=10, optimizer=sgd(model),
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


def test_auto_takes_bf16_only_where_the_processor_has_it(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert training.precision_for(torch.device("cpu")) == "no"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert training.precision_for(torch.device("cpu")) == "bf16"


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


# --- metrics ------------------------------------------------------------------------------------


def read_csv(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


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


def test_a_new_column_rewrites_the_file(tmp_path):
    metrics = MetricsFile(tmp_path / "m.csv", [])
    metrics.append({"step": 1, "loss": 2.0})
    metrics.append({"step": 2, "loss": 1.5, "acc": 0.5})
    metrics.append({"step": 3, "loss": 1.0})
    assert (tmp_path / "m.csv").read_text().split() == ["step,loss,acc", "1,2.0,", "2,1.5,0.5",
                                                        "3,1.0,"]  # fmt: skip


def test_the_progress_bar_shows_when_asked(capsys):
    train(Line(), rows(1), mean_output, max_steps=1, progress=True)
    assert "training: 100%" in capsys.readouterr().err
    train(Line(), rows(1), mean_output, max_steps=1)
    assert "training" not in capsys.readouterr().err


# --- checkpoints --------------------------------------------------------------------------------


def interrupted(folder: Path, at: int) -> None:
    """A run of four steps that stops in step ``at``."""
    model, calls = Line(), []

    def loss_fn(model, batch):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return mean_output(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(model, rows(1, 2, 4, 8), loss_fn, max_steps=4, optimizer=sgd(model),
              schedule="constant", max_grad_norm=NO_CLIP, checkpoint_dir=folder,
              checkpoint_every=1, metrics_path=folder / "m.csv")  # fmt: skip


def resumed(folder: Path, loss_fn=mean_output) -> tuple[float, list[dict]]:
    model = Line()
    history = train(model, rows(1, 2, 4, 8), loss_fn, max_steps=4, optimizer=sgd(model),
                    schedule="constant", max_grad_norm=NO_CLIP, checkpoint_dir=folder,
                    checkpoint_every=1, metrics_path=folder / "m.csv")  # fmt: skip
    return model.w.item(), history


def test_a_resumed_run_reads_each_batch_once(tmp_path):
    """Batches 1, 2, 4, 8 add up to 15 in any order of stops; a batch read twice or never would
    show."""
    interrupted(tmp_path, at=3)
    w, history = resumed(tmp_path)
    assert w == -15 and [r["step"] for r in history] == [1, 2, 3, 4]
    assert [int(r["step"]) for r in read_csv(tmp_path / "m.csv")] == [1, 2, 3, 4]


def test_a_finished_run_is_not_run_again(tmp_path):
    first = resumed(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    assert resumed(tmp_path, loss_fn=None) == first
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("damage", [
    lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"\0" * 999,
])  # fmt: skip
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    interrupted(tmp_path, at=4)
    newest, before = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.previous.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match="cannot be read; trying the one before"):
        assert load_checkpoint(tmp_path)["step"] == 2
    with pytest.warns(UserWarning, match="cannot be read"):
        assert resumed(tmp_path)[0] == -15
    for path in (newest, before):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="Remove the folder to start"):
        load_checkpoint(tmp_path)


def test_no_checkpoint_is_no_error(tmp_path):
    assert load_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's always full device")
def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    """The new file goes to a full device."""
    save_checkpoint(tmp_path, {"step": 1})
    (tmp_path / "checkpoint.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="The one before is still there: make room"):
        save_checkpoint(tmp_path, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert load_checkpoint(tmp_path) == {"step": 1}


def test_figures_of_numpy_and_torch_do_not_spoil_the_checkpoint(tmp_path):
    """Checkpoints are read with ``weights_only``, which refuses numpy's scalars."""
    model = Line()
    train(model, rows(1), mean_output, max_steps=1, optimizer=sgd(model), checkpoint_dir=tmp_path,
          evaluate=lambda m, step: {"a": np.float64(0.5), "b": torch.tensor(2.0)})  # fmt: skip
    assert load_checkpoint(tmp_path)["history"][0]["a"] == 0.5


# --- SIGKILL ------------------------------------------------------------------------------------


class Stream:
    """Batches from a generator whose state is saved with the checkpoint."""

    def __init__(self):
        self.g = torch.Generator().manual_seed(5)

    def state_dict(self):
        return {"g": self.g.get_state()}

    def load_state_dict(self, state):
        self.g.set_state(state["g"])

    def __iter__(self):
        while True:
            yield {"input_ids": torch.randint(0, 17, (2, 8), generator=self.g)}


def noisy_loss(model, batch):
    """Draws from all three of Python's, numpy's and torch's own generators."""
    noise = random.random() + np.random.rand() + torch.rand(1)
    return causal_lm_loss(model, batch) * noise, {"noise": noise}


def the_run(folder: Path, stateful: bool) -> None:
    """Ten steps with everything that has a state; leaves the weights in ``final.pt``."""
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    model = tiny_llama()
    train(
        model, Stream() if stateful else token_batches(20), noisy_loss, max_steps=10,
        optimizer=muon_adamw(model), warmup_steps=3, schedule="trapezoid",
        gradient_accumulation=2, metrics_path=folder / "metrics.csv", checkpoint_dir=folder,
        checkpoint_every=2, evaluate=lambda m, step: {"draw": torch.rand(1)}, evaluate_every=3,
    )  # fmt: skip
    torch.save(model.state_dict(), folder / "final.pt")


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_line(number: int) -> None:
    """SIGKILL before the ``number``-th line of training.py that is executed from now on."""
    left = [number]

    def trace(frame, event, arg):
        if frame.f_code.co_filename != training.__file__:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                kill_me()
        return trace

    sys.settrace(trace)


def kill_in_save(number: int) -> None:
    """SIGKILL when half of the ``number``-th checkpoint's bytes are on the disk."""
    save, left = torch.save, [number]

    def half_save(state, file):
        left[0] -= 1
        save(state, file)
        if left[0] == 0:
            file.truncate(file.tell() // 2)
            os.fsync(file.fileno())
            kill_me()

    torch.save = half_save


def fork(folder: Path, stateful: bool, prepare=None) -> int:
    """Run (or go on with) the run in a process of its own; returns its wait status."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            if prepare:
                prepare()
            the_run(folder, stateful)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def drive(folder: Path) -> None:
    """For both kinds of stream: one whole run, and one killed over and over until it is done."""
    torch.set_num_threads(1)
    import accelerate  # noqa: F401  these imports are slow: once, not in every child

    muon_adamw(tiny_llama())
    rng, report = random.Random(0), {}
    for stateful in (True, False):
        name = "stateful" if stateful else "plain"
        whole, killed = folder / name / "whole", folder / name / "killed"
        whole.mkdir(parents=True), killed.mkdir()
        assert fork(whole, stateful) == 0
        kills = [lambda n=n: kill_in_save(n) for n in (2, 1, 2)]
        kills += [lambda n=n: kill_in_line(n) for n in rng.choices(range(20, 250), k=12)]
        count = 0
        for kill in kills:
            status = fork(killed, stateful, kill)
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL, status
            count += 1
            if (killed / "metrics.csv").exists():  # the last row may have been half written
                with open(killed / "metrics.csv", "a") as file:
                    file.write("99,0.12")
        if not (killed / "final.pt").exists():
            assert fork(killed, stateful) == 0
        report[name] = count
    print(json.dumps(report))


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """SIGKILL half-way through writing a checkpoint, and before any line of the loop: the weights
    and the metrics (but for the seconds) are those of the run that was left alone."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    result = subprocess.run([sys.executable, __file__, tmp_path], env=environment, text=True,
                            capture_output=True, timeout=60)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert all(count >= 6 for count in json.loads(result.stdout).values()), result.stdout
    for kind in ("stateful", "plain"):
        whole, killed = tmp_path / kind / "whole", tmp_path / kind / "killed"
        a, b = torch.load(whole / "final.pt"), torch.load(killed / "final.pt")
        assert all(torch.equal(a[name], b[name]) for name in a)
        tables = [[{k: v for k, v in r.items() if k != "seconds"} for r in
                   read_csv(f / "metrics.csv")] for f in (whole, killed)]  # fmt: skip
        assert tables[0] == tables[1] and len(tables[0]) == 10


# --- several processes --------------------------------------------------------------------------

SCRIPT = """
import json, sys
sys.path.insert(0, {tests!r})
from test_training import two_process_run
two_process_run({folder!r})
"""


def mean_id_loss(model, batch):
    return causal_lm_loss(model, batch), {"mean_id": batch["input_ids"].float().mean()}


def two_process_run(folder: str) -> list[dict]:
    """Three steps, then on to six from the checkpoint; then a batch of three rows."""
    torch.set_num_threads(1)
    for steps in (3, 6):
        model = tiny_llama()
        history = train(model, token_batches(6), mean_id_loss, max_steps=steps, lr=0.01,
                        schedule="constant", mixed_precision="no", checkpoint_dir=folder,
                        metrics_path=Path(folder) / "metrics.csv")  # fmt: skip
    try:
        train(model, token_batches(1, size=3), causal_lm_loss, max_steps=1)
    except ValueError as error:
        Path(folder, f"error-{os.environ.get('RANK')}").write_text(str(error))
    return history


def test_two_processes_give_the_loss_of_one(tmp_path):
    """``accelerate launch`` on two CPU processes: each takes half of every batch. Without a GPU
    ``--multi_gpu`` starts them on the CPU, with gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(ROOT / "tests"), folder=str(tmp_path / "two")))
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}",
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    }  # fmt: skip
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
               "--num_processes=2", "--num_machines=1", "--mixed_precision=no",
               "--dynamo_backend=no", f"--main_process_port={port}", str(script)]  # fmt: skip
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr[-3000:]
    two = read_csv(tmp_path / "two" / "metrics.csv")
    one = two_process_run(str(tmp_path / "one"))
    assert len(two) == len(one) == 6
    for key in ("loss", "grad_norm", "mean_id"):
        assert [float(r[key]) for r in two] == pytest.approx([r[key] for r in one], rel=1e-5), key
    a, b = (load_checkpoint(tmp_path / n)["model"] for n in ("one", "two"))
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)
    for rank in "01":
        message = (tmp_path / "two" / f"error-{rank}").read_text()
        assert message.startswith("A batch of 3 rows cannot be shared equally by 2 processes")


if __name__ == "__main__":
    drive(Path(sys.argv[1]))

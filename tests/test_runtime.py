"""The device: argument, then environment, then what the machine has; and the precision."""

import pytest
import torch

import course_lib
from course_lib import runtime
from course_lib.runtime import autocast, device, evaluation_mode, model_device


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv("COURSE_DEVICE", raising=False)


def test_the_default_is_what_the_machine_has():
    assert device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert course_lib.device is device


def test_the_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "toaster")
    assert device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="'toaster'.*COURSE_DEVICE"):
        device()


def test_the_environment_chooses(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    assert device() == torch.device("cpu")
    monkeypatch.setenv("COURSE_DEVICE", "")
    assert device() == device(None)


@pytest.mark.parametrize("name", ["gpu", "mps", "meta", "CPU", " cpu", "cpu:x", "cuda:-1", "cuda:"])
def test_an_unknown_device_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"Unknown device '{name}': use 'cpu', 'cuda'"):
        device(name)


def test_a_gpu_that_is_not_there_is_refused_with_the_number_there_are():
    """One past the last: cuda:0 on a machine without a GPU."""
    count = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"has {count} GPUs.*unset COURSE_DEVICE"):
        device(f"cuda:{count}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_number_is_refused_too():
    with pytest.raises(ValueError, match="has 0 GPUs"):
        device("cuda")


def test_auto_takes_bf16_only_where_the_processor_has_it(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert runtime.precision_for(torch.device("cpu")) == "no"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert runtime.precision_for(torch.device("cpu")) == "bf16"


def test_autocast_computes_products_in_the_precision_it_is_told():
    cpu, x = torch.device("cpu"), torch.ones(2, 2)
    for name, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(cpu, name):
            assert (x @ x).dtype == dtype
    message = 'must be "auto", "no" or "bf16", got \'fp16\''
    with pytest.raises(ValueError, match=message), autocast(cpu, "fp16"):
        pass


def half_frozen() -> torch.nn.Module:
    """In training, but for the middle part, which is frozen in evaluation mode."""
    model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Dropout()) for _ in range(3)))
    model.train()
    model[1].eval()
    return model


@pytest.mark.parametrize("error", [False, True])
def test_evaluation_mode_ends_as_it_began_part_by_part(error):
    """``model.train()`` at the end would wake the frozen part too."""
    model = half_frozen()
    before = [module.training for module in model.modules()]
    assert before == [True, True, True, False, False, True, True]
    try:
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            if error:
                raise KeyError
    except KeyError:
        pass
    assert [module.training for module in model.modules()] == before


def test_a_model_in_evaluation_mode_stays_so():
    model = half_frozen().eval()
    with evaluation_mode(model):
        pass
    assert not any(module.training for module in model.modules())


def test_a_part_that_does_more_when_its_mode_changes_is_told():
    """As layers that merge their weights for evaluation: each change goes through ``train``."""

    class Merging(torch.nn.Module):
        merged = False

        def train(self, mode: bool = True):
            self.merged = not mode
            return super().train(mode)

    model = torch.nn.Sequential(Merging()).train()
    with evaluation_mode(model):
        assert model[0].merged
    assert not model[0].merged


def test_the_device_of_a_model_is_that_of_its_weights():
    assert model_device(torch.nn.Linear(2, 2, device="meta")) == torch.device("meta")

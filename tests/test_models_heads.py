"""A scalar on every token, on our models and on transformers': what it reads, padding, training."""

import copy

import pytest
import torch
import transformers
from random_families import build
from random_models import llama

from course_lib.models import ScalarHead, WithScalarHead, from_transformers
from course_lib.models.heads import read
from course_lib.optim import Muon, muon_adamw

SMALL = {"vocab_size": 11, "layers": 2, "heads": 3, "width": 4, "inner": 9, "length": 16,
         "tied": False}  # fmt: skip
RIGHT = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
IDS = torch.tensor([[3, 1, 4, 0, 0], [1, 5, 9, 2, 6]])
LEFT_IDS = torch.tensor([[0, 0, 3, 1, 4], [1, 5, 9, 2, 6]])
LEFT = RIGHT.flip(1)
MODELS = ["Llama", "GPT2LMHeadModel", "LlamaForCausalLM", "BloomForCausalLM"]


def trunk(name: str):
    """Our Llama, or a random model over there."""
    return llama() if name == "Llama" else build(getattr(transformers, name), SMALL, 0)


def test_a_head_by_hand():
    """w = (1, 2), b = 0.5: (3, 4) gives 11.5, (0, 0) gives 0.5; at first all is 0."""
    head, x = ScalarHead(2), torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    assert head(x).tolist() == [[0.0, 0.0]]
    with torch.no_grad():
        head.weight.copy_(torch.tensor([1.0, 2.0]))
        head.bias.fill_(0.5)
    assert head(x).tolist() == [[11.5, 0.5]]


def test_a_small_start_is_drawn_from_the_generator():
    """10,000 draws of N(0, 0.1²): the deviation strays by about 0.1/√20,000 = 0.0007."""
    a, b = (ScalarHead(10_000, 0.1, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a.weight, b.weight) and not a.bias.any()
    assert a.weight.std().item() == pytest.approx(0.1, abs=0.003)


@pytest.mark.parametrize("name", MODELS)
def test_values_are_the_head_of_what_the_output_matrix_reads(name):
    """Over there, of the trunk's last_hidden_state, behind its last norm."""
    model = trunk(name)
    critic = WithScalarHead(model, std=0.5, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        values = critic(IDS)
        if name == "Llama":
            x = model(IDS).last_hidden_state
        else:
            x = model.base_model(IDS).last_hidden_state
        assert values.shape == IDS.shape
        want = (x * critic.head.weight).sum(-1) + critic.head.bias
        torch.testing.assert_close(values, want, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            read(model, IDS).last_hidden_state @ model.lm_head.weight.T
            if name != "Llama" else model.score(x), model(IDS).logits, atol=1e-5, rtol=0
        )  # fmt: skip
    assert WithScalarHead(model)(IDS).abs().max() == 0


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_no_value(name):
    """Left, right, and with the positions given as other ones, which learnt ones notice."""
    critic = WithScalarHead(trunk(name), 0.5, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        right, left = critic(IDS, RIGHT), critic(LEFT_IDS, LEFT)
        torch.testing.assert_close(left[LEFT == 1], right[RIGHT == 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(critic(IDS[:1, :3])[0], right[0, :3], atol=1e-5, rtol=0)
        if name == "GPT2LMHeadModel":
            moved = critic(IDS, RIGHT, position_ids=torch.arange(5)[None] + 4)
            assert (moved - right)[RIGHT == 1].abs().max() > 0.1


@pytest.mark.parametrize("name", MODELS[1:])
def test_ours_and_theirs_say_the_same(name):
    theirs = WithScalarHead(trunk(name), 0.5, torch.Generator().manual_seed(0)).eval()
    ours = WithScalarHead(from_transformers(theirs.model)).eval()
    ours.head.load_state_dict(theirs.head.state_dict())
    with torch.no_grad():
        a, b = ours(LEFT_IDS, LEFT), theirs(LEFT_IDS, LEFT)
    torch.testing.assert_close(a[LEFT == 1], b[LEFT == 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_one_pass_serves_a_policy_and_its_critic(name):
    """A head of one's own on a shared trunk: the policy's logits, the critic's values."""
    policy = trunk(name)
    critic = WithScalarHead(policy, 0.5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = read(policy, IDS, RIGHT)
        kept = RIGHT == 1
        want = policy(IDS, attention_mask=RIGHT).logits
        torch.testing.assert_close(out.logits[kept], want[kept])
        torch.testing.assert_close(critic.head(out.last_hidden_state), critic(IDS, RIGHT))
        assert read(policy, IDS, RIGHT, logits_to_keep=1).logits.shape[1] == 1


@pytest.mark.parametrize("name", MODELS)
def test_muon_leaves_the_head_to_adamw(name):
    critic = WithScalarHead(trunk(name))
    optimizer = muon_adamw(critic)
    muon = next(o for o in optimizer.optimizers if isinstance(o, Muon))
    matrices = {id(p) for group in muon.param_groups for p in group["params"]}
    every = {id(p) for group in optimizer.param_groups for p in group["params"]}
    head = {id(p) for p in critic.head.parameters()}
    assert matrices and len(head) == 2
    assert not head & matrices and head <= every


def test_a_wrapped_trunk_is_still_known_as_ours():
    model = llama()
    critic = WithScalarHead(torch.compile(model, backend="eager"), 0.5,
                            torch.Generator().manual_seed(0))  # fmt: skip
    plain = WithScalarHead(model)
    plain.head.load_state_dict(critic.head.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(critic(IDS, RIGHT), plain(IDS, RIGHT))


@pytest.mark.parametrize("autocast", [True, False])
def test_values_keep_their_precision_on_a_trunk_of_bfloat16(autocast):
    """w · x of ones and weights that add up to 256.5: bfloat16 tells 256 from 258, nothing between.
    """
    model, x = (llama() if autocast else llama().bfloat16()), torch.ones(1, 1, 24)
    critic = WithScalarHead(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        critic.head.weight.fill_(256.5 / 24)
        value, values = critic.head(x.bfloat16()), critic(IDS)
    assert value.item() == pytest.approx(256.5, abs=1e-3)
    assert values.dtype == torch.float32 and values.isfinite().all()


@pytest.mark.parametrize("name", ["Llama", "GPT2LMHeadModel"])
def test_head_and_trunk_learn_together(name):
    """From zero, 60 steps on random targets: the error falls below a tenth of its start. A copy
    of the trunk learns, the policy that it was copied from stays as it was."""
    policy = trunk(name)
    before = copy.deepcopy(policy.state_dict())
    critic = WithScalarHead(copy.deepcopy(policy))
    target = torch.randn(IDS.shape, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.02)
    errors = []
    for _ in range(60):
        loss = ((critic(IDS, RIGHT) - target)[RIGHT == 1] ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < errors[0] / 10
    assert all(torch.equal(x, before[n]) for n, x in policy.state_dict().items())
    trunk_grads = [p.grad for p in critic.model.parameters() if p.grad is not None]
    assert any(g.abs().max() > 0 for g in trunk_grads)

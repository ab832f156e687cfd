"""Generation: the fast path gives the reference's tokens, and samples what the softmax says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.generation import (
    check_prompts,
    end_ids,
    filter_logits,
    generate,
    generate_reference,
    generate_seq2seq,
    sample,
)
from course_lib.models import T5, Llama, LlamaConfig, T5Config, to_transformers

NEG = float("-inf")
ALMOST_ONE = 1 - 2**-24  # the largest number that torch.rand draws


def tiny(seed: int = 0, **changes) -> Llama:
    """A random Llama with weights ten times the usual, so that its choices are far apart."""
    shape = {"vocab_size": 17, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 16,
             "n_inner": 24, "block_size": 32}  # fmt: skip
    model = Llama(LlamaConfig(**shape | changes), torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    return model


@pytest.fixture(scope="module")
def model():
    return tiny()


def padded(lengths: list[int], side: str, seed: int = 0, vocab: int = 17):
    """Random prompts of these lengths, padded with id 0 on the left, on the right, or by turns."""
    g, T = torch.Generator().manual_seed(seed), max(lengths)
    ids, mask = torch.zeros(2, len(lengths), T, dtype=torch.long)
    for row, n in enumerate(lengths):
        left = side == "left" or (side == "mixed" and row % 2 == 0)
        place = slice(T - n, T) if left else slice(0, n)
        ids[row, place] = torch.randint(0, vocab, (n,), generator=g)
        mask[row, place] = 1
    return ids, mask


# --- the fast path beside the reference ---------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (4, 4)]),
    layers=st.integers(1, 3),
    tied=st.booleans(),
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=5),
    side=st.sampled_from(["left", "right", "mixed"]),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 20),
    top_p=st.none() | st.floats(0.05, 1.0),
    eos_token_id=st.none() | st.integers(0, 12),
    pad_token_id=st.none() | st.integers(0, 12),
)
def test_generate_gives_the_tokens_of_the_reference(
    seed, heads, layers, tied, lengths, side, temperature, top_k, top_p, eos_token_id, pad_token_id
):
    model = tiny(seed, vocab_size=13, n_layer=layers, n_head=heads[0], n_kv_head=heads[1],
                 tie_embeddings=tied)  # fmt: skip
    ids, mask = padded(lengths, side, seed, vocab=13)
    outs = [
        f(model, ids, mask, max_new_tokens=9, temperature=temperature, top_k=top_k, top_p=top_p,
          eos_token_id=eos_token_id, pad_token_id=pad_token_id,
          generator=torch.Generator().manual_seed(seed))
        for f in (generate, generate_reference)
    ]  # fmt: skip
    assert outs[0].tolist() == outs[1].tolist()
    for row, n in enumerate(lengths):  # the prompt comes back, moved to the right end
        T = max(lengths)
        assert outs[0][row, T - n : T].tolist() == ids[row][mask[row].bool()].tolist()


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Bloom"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_transformers_model_does_as_well(kind, temperature):
    """With its own cache, rows that end early, and positions learned, rotary or none (ALiBi)."""
    import transformers

    torch.manual_seed(0)
    shape = {
        "Llama": {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24,
                  "num_attention_heads": 4, "num_key_value_heads": 2,
                  "max_position_embeddings": 32},
        "GPT2": {"n_layer": 2, "n_embd": 16, "n_head": 4, "n_positions": 32},
        "Bloom": {"n_layer": 2, "hidden_size": 16, "n_head": 4},
    }[kind]  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=17, initializer_range=0.5, bos_token_id=None, eos_token_id=None, **shape
    )
    hf_model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids, mask = padded([3, 7, 1, 5], "mixed")
    outs = [
        f(hf_model, ids, mask, max_new_tokens=12, temperature=temperature, eos_token_id=5,
          generator=torch.Generator().manual_seed(1))
        for f in (generate, generate_reference)
    ]  # fmt: skip
    assert outs[0].tolist() == outs[1].tolist()


def test_greedy_is_that_of_transformers_on_random_weights(model):
    """Left padding, no end token: ``transformers.generate`` on the same weights."""
    ids, mask = padded([3, 7, 1, 5], "left")
    ours = generate(model, ids, mask, max_new_tokens=12, temperature=0.0)
    theirs = to_transformers(model).eval().generate(
        ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    assert ours.tolist() == theirs.tolist()


def test_greedy_is_that_of_transformers_on_the_base_model(base):
    """Token for token, on prompts of different lengths, up to the end mark."""
    model, tokenizer = base
    prompts = ["Q: 2 + 3\nA:", " dog -> dogs\n cat ->", "Once"]
    batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    ours = generate(model, **_only_ids(batch), max_new_tokens=24, temperature=0.0,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    theirs = to_transformers(model).eval().generate(
        **_only_ids(batch), max_new_tokens=24, do_sample=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    assert ours.tolist() == theirs.tolist()


def _only_ids(batch) -> dict:
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 8), min_size=2, max_size=5),
    st.sampled_from(["left", "right", "mixed"]),
    st.integers(0, 10**6),
)
def test_a_greedy_row_does_not_depend_on_the_others(model, lengths, side, seed):
    """Each prompt alone, without padding, gives what it gives in the batch."""
    ids, mask = padded(lengths, side, seed)
    together = generate(model, ids, mask, max_new_tokens=8, temperature=0.0, eos_token_id=3)
    for row in range(len(lengths)):
        alone = generate(model, ids[row][mask[row].bool()][None], max_new_tokens=8,
                         temperature=0.0, eos_token_id=3)[0, lengths[row] :]  # fmt: skip
        new = together[row, max(lengths) :]
        assert new[: len(alone)].tolist() == alone.tolist()[: len(new)]
        assert (new[len(alone) :] == 3).all()


def test_the_generator_alone_decides(model):
    ids, mask = padded([3, 5], "left")

    def draw(seed: int) -> list:
        g = torch.Generator().manual_seed(seed)
        return generate(model, ids, mask, max_new_tokens=16, temperature=3.0, generator=g).tolist()

    first = draw(7)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert draw(7) == first != draw(8)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_ended_row_does_not_change_what_the_others_draw(model):
    """One number is drawn a row and step, ended or not: with and without an end token the rows are
    the same up to it, and a row that never reaches it is the same to its end."""
    ids, mask = padded([4, 4, 4], "left", seed=2)
    free, stopped = (
        generate(model, ids, mask, max_new_tokens=20, temperature=2.0, eos_token_id=eos,
                 generator=torch.Generator().manual_seed(3))
        for eos in (None, 7)
    )  # fmt: skip
    ends = [7 in row[4:].tolist() for row in free]
    assert True in ends and False in ends, "the fixture must have a row of each kind"
    for row, ended in enumerate(ends):
        at = 4 + free[row, 4:].tolist().index(7) + 1 if ended else stopped.shape[1]
        assert free[row, :at].tolist() == stopped[row, :at].tolist()


# --- the end ------------------------------------------------------------------------------------


class Counter(torch.nn.Module):
    """A model whose next token is always the last one plus 1: what it does is known."""

    def __init__(self, block_size: int = 32):
        super().__init__()
        self.config = type("Config", (), {"vocab_size": 12, "block_size": block_size})
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.read = []  # the shape of every input

    def forward(self, input_ids, **kwargs):
        self.read.append(tuple(input_ids.shape))
        one_hot = torch.nn.functional.one_hot((input_ids + 1) % 12, 12).float()
        cache = type("Cache", (), {"batch_select_indices": lambda self, rows: None})()
        return type("Out", (), {"logits": 50 * one_hot, "past_key_values": cache})


@pytest.mark.parametrize("run", [generate, generate_reference])
def test_rows_end_at_the_end_token_and_generation_with_the_last_of_them(run):
    """Counting from 3 and from 5 to the end token 7: 4 5 6 7 and 6 7, then padding 11; four new
    tokens, not nine."""
    out = run(Counter(), torch.tensor([[2, 3], [4, 5]]), max_new_tokens=9, temperature=0.0,
              eos_token_id=7, pad_token_id=11)  # fmt: skip
    assert out.tolist() == [[2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 11, 11]]
    out = run(Counter(), torch.tensor([[5], [3]]), max_new_tokens=9, temperature=0.0,
              eos_token_id=7)  # fmt: skip
    assert out.tolist() == [[5, 6, 7, 7, 7], [3, 4, 5, 6, 7]]


def test_only_what_is_new_and_unfinished_is_read():
    """The prompt once, then one token of each row that goes on: the second row ends first."""
    model = Counter()
    generate(model, torch.tensor([[2, 3], [4, 5]]), max_new_tokens=9, temperature=0.0,
             eos_token_id=7)  # fmt: skip
    assert model.read == [(2, 2), (2, 1), (1, 1), (1, 1)]


def test_an_end_token_in_the_prompt_ends_nothing():
    """The prompt 7 3 counts on to 4 5 6."""
    out = generate(Counter(), torch.tensor([[7, 3]]), max_new_tokens=3, temperature=0.0,
                   eos_token_id=7)  # fmt: skip
    assert out.tolist() == [[7, 3, 4, 5, 6]]


@pytest.mark.parametrize("run", [generate, generate_reference])
def test_any_of_several_end_tokens_ends_a_row(run):
    """Counting from 3 and from 5 to 9 or 6: 4 5 6 and 6. The first of them pads where none is
    given. The bug: a list, as Llama 3 and Qwen have it, was a TypeError."""
    prompts = torch.tensor([[3], [5]])
    settings_ = {"max_new_tokens": 9, "temperature": 0.0}
    out = run(Counter(), prompts, eos_token_id=[9, 6], **settings_)
    assert out.tolist() == [[3, 4, 5, 6], [5, 6, 9, 9]]
    out = run(Counter(), prompts, eos_token_id=(6, 9), pad_token_id=11, **settings_)
    assert out.tolist() == [[3, 4, 5, 6], [5, 6, 11, 11]]
    one = run(Counter(), prompts, eos_token_id=6, **settings_)
    assert run(Counter(), prompts, eos_token_id=[6], **settings_).tolist() == one.tolist()
    none = run(Counter(), prompts, max_new_tokens=2, temperature=0.0, eos_token_id=[])
    assert none.tolist() == [[3, 4, 5], [5, 6, 7]]


def test_end_tokens_are_one_several_or_none():
    import numpy as np

    assert end_ids(None) == end_ids([]) == ()
    assert end_ids(2) == end_ids(np.int64(2)) == end_ids(torch.tensor(2)) == (2,)
    assert end_ids([5, 2]) == end_ids(torch.tensor([5, 2])) == (5, 2)
    with pytest.raises(TypeError):
        end_ids("</s>")


def t5(seed: int = 0) -> T5:
    model = T5(T5Config(vocab_size=17, n_layer=1, n_head=2, n_embd=16, head_width=8, n_inner=24),
               torch.Generator().manual_seed(seed)).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(30 if parameter.ndim == 2 else 1)
    return model


def test_several_end_tokens_end_a_target_too():
    """Each row is the one written without an end, up to the first of the two tokens."""
    ids = torch.tensor([[3, 4, 5], [6, 7, 8], [9, 9, 2]])
    settings_ = {"max_new_tokens": 8, "temperature": 2.0}
    free, stopped = (
        generate_seq2seq(t5(), ids, eos_token_id=eos, pad_token_id=None if eos is None else 0,
                         generator=torch.Generator().manual_seed(2), **settings_).tolist()
        for eos in (None, [4, 11])
    )  # fmt: skip
    ended = 0
    for row, whole in zip(stopped, free, strict=True):
        ends = [i for i in range(1, 9) if whole[i] in (4, 11)]
        upto = ends[0] + 1 if ends else 9
        ended += bool(ends)
        assert row == (whole[:upto] + [0] * 9)[: len(row)]
    assert ended, "the fixture must have a row that ends"


# --- the mode of the model ----------------------------------------------------------------------


@pytest.mark.parametrize("run", [generate, generate_reference])
def test_a_hub_model_in_training_samples_without_dropout_and_goes_on_training(run):
    """The bug: rollouts of a model in training were those of a network with half its units."""
    import transformers

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=17, n_layer=2, n_embd=16, n_head=4, n_positions=32, initializer_range=0.5,
        resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5, bos_token_id=None, eos_token_id=None,
    ))  # fmt: skip
    ids, mask = padded([3, 7], "left")
    expected = run(model.eval(), ids, mask, max_new_tokens=9, temperature=0.0)
    model.train()
    model.transformer.h[0].eval()  # a frozen layer
    before = [module.training for module in model.modules()]
    out = run(model, ids, mask, max_new_tokens=9, temperature=0.0)
    assert out.tolist() == expected.tolist()
    with pytest.raises(ValueError, match="span 3..99"):
        run(model, torch.tensor([[3, 99]]), max_new_tokens=2)
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2 and torch.is_grad_enabled()


def test_a_target_is_written_in_evaluation_mode():
    seen = []
    model = t5().train()
    model.register_forward_hook(lambda module, *_: seen.append(module.training))
    generate_seq2seq(model, torch.tensor([[3, 4]]), max_new_tokens=2)
    assert seen == [False, False] and model.training


# --- logits that are not finite -----------------------------------------------------------------


class Broken(torch.nn.Module):
    """Says 0 for every token; from new token ``at`` on, ``value`` for token 4 in row 1."""

    def __init__(self, value: float, at: int):
        super().__init__()
        self.config = type("Config", (), {"vocab_size": 12, "block_size": 32})
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.value, self.at, self.calls = value, at, 0

    def forward(self, input_ids=None, decoder_input_ids=None, **kwargs):
        ids = input_ids if decoder_input_ids is None else decoder_input_ids
        logits = torch.zeros(*ids.shape, 12)
        if self.calls >= self.at:
            logits[1, -1, 4] = self.value
        self.calls += 1
        return type("Out", (), {"logits": logits, "past_key_values": None,
                                "encoder_last_hidden_state": None})  # fmt: skip


@pytest.mark.parametrize("run", [generate, generate_reference])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_name_their_step_and_row(run, temperature, value):
    """The bug: NaN drew the id vocab_size, 12, which no embedding has, and greedily the first NaN;
    one inf is NaN after the softmax. Here the third new token, number 2, of the second row."""
    with pytest.raises(FloatingPointError, match=f"new token 2 of row 1 have {value} as"):
        run(Broken(value, 2), torch.tensor([[1], [2]]), max_new_tokens=5, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_row_is_the_callers_although_ended_rows_are_dropped(temperature):
    """Row 0 ends at once, so row 1 is the only one that is still computed."""
    model = Counter()
    real = model.forward
    model.forward = lambda ids, **kw: _spoil(real(ids, **kw), len(model.read) > 2)
    with pytest.raises(FloatingPointError, match="new token 2 of row 1 have nan"):
        generate(model, torch.tensor([[6], [3]]), max_new_tokens=9, temperature=temperature,
                 eos_token_id=7)  # fmt: skip


def _spoil(out, spoiled: bool):
    if spoiled:
        out.logits = out.logits * float("nan")
    return out


def test_a_target_with_logits_that_are_not_finite():
    model = Broken(float("nan"), 1)
    model.config.start_token_id = 0
    with pytest.raises(FloatingPointError, match="new token 1 of row 1"):
        generate_seq2seq(model, torch.tensor([[1], [2]]), max_new_tokens=5)


def test_masked_tokens_are_legal_but_one_must_be_left():
    """-inf is a token that must not come: 3 is the only one left in row 0, none is in row 1."""
    logits = torch.full((2, 5), NEG)
    logits[0, 3] = -7.0
    for temperature in (0.0, 1.0):
        uniforms = torch.tensor([ALMOST_ONE])
        assert sample(logits[:1], temperature, uniforms=uniforms).tolist() == [3]
        with pytest.raises(FloatingPointError, match="row 1 have -inf"):
            sample(logits, temperature, uniforms=uniforms.repeat(2))


# --- sampling -----------------------------------------------------------------------------------


def test_top_k_and_top_p_by_hand():
    """Probabilities .5 .25 .125 .125, exact in binary, in the order .125 .5 .125 .25.

    top_k 2 keeps .5 and .25. top_p .5 needs only the .5, .6 the .25 too, .75 the same two, and
    .76 one of the .125. After top_k 2 they are 2/3 and 1/3, so that top_p .6 keeps the first alone.
    """
    logits = torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log()

    def kept(**settings) -> list[int]:
        return filter_logits(logits, **settings).isfinite()[0].nonzero().flatten().tolist()

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=1) == [1] and kept(top_k=2) == [1, 3] and kept(top_k=9) == [0, 1, 2, 3]
    assert kept(top_k=3) == [0, 1, 2, 3], "tied with the third"
    assert kept(top_p=1e-9) == [1] and kept(top_p=0.5) == [1]
    assert kept(top_p=0.6) == kept(top_p=0.75) == [1, 3]
    assert len(kept(top_p=0.76)) == 3 and kept(top_p=0.99) == kept(top_p=1.0) == [0, 1, 2, 3]
    assert kept(top_k=2, top_p=0.6) == [1]
    assert torch.equal(filter_logits(logits, top_k=2)[0, [1, 3]], logits[0, [1, 3]])


def test_temperature_comes_before_the_filters():
    """Probabilities .8 .2 at temperature 1; at 2 they go as √.8 : √.2 = 2 : 1, so .667 .333 and
    top_p .75 keeps both. The uniform .7 then draws the second, at temperature 1 the first."""
    logits = torch.tensor([[0.8, 0.2]]).log()
    assert sample(logits, 2.0, None, 0.75, torch.tensor([0.7])).item() == 1
    assert sample(logits, 1.0, None, 0.75, torch.tensor([0.7])).item() == 0


def test_a_uniform_picks_the_interval_it_lies_in():
    """Probabilities .25 .5 .25 part [0, 1) at .25 and .75; a border belongs to the right one."""
    logits = torch.tensor([0.25, 0.5, 0.25]).log().expand(6, 3)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, ALMOST_ONE])
    assert sample(logits, uniforms=uniforms).tolist() == [0, 0, 1, 1, 2, 2]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-200, 200) | st.just(NEG), min_size=1, max_size=40),
    st.sampled_from([1e-30, 1e-3, 0.7, 1.0, 30.0]),
    st.none() | st.integers(1, 40),
    st.none() | st.floats(0.01, 1.0),
)
def test_no_token_of_probability_zero_is_drawn(values, temperature, top_k, top_p):
    """Also at the ends of the unit interval, and when all but a few logits are -inf."""
    logits = torch.tensor([*values, 0.0, NEG], dtype=torch.float32)
    allowed = filter_logits(logits[None] / temperature, top_k, top_p)[0] > NEG
    uniforms = torch.tensor([0.0, 2**-24, 0.5, ALMOST_ONE])
    tokens = sample(logits.expand(4, -1), temperature, top_k, top_p, uniforms)
    best = (logits - logits.max()) / temperature
    assert (best[tokens].exp() > 0).all()
    if temperature > 1e-20:
        assert allowed[tokens].all()


def test_a_very_low_temperature_is_greedy():
    """Logits / 1e-38 overflow to inf, and inf - inf is no number: the largest must come off
    first."""
    logits = torch.tensor([[1.0, 40.0, 39.0], [-5.0, -9.0, -6.0]])
    for u in (0.0, ALMOST_ONE):
        assert sample(logits, 1e-38, uniforms=torch.full((2,), u)).tolist() == [1, 0]


@pytest.mark.parametrize("settings_", [
    {}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.8},
    {"temperature": 1.5, "top_k": 5, "top_p": 0.9},
])  # fmt: skip
def test_frequencies_are_those_of_the_softmax(settings_):
    """Pearson's χ² of 20,000 draws of the first new token against probabilities worked out in
    float64 from the definitions; its mean is the degrees of freedom and more than 40 would happen
    once in 10⁵ runs of 6 to 11 degrees (the seed is fixed)."""
    model, n = tiny(5, vocab_size=12), 20_000
    with torch.no_grad():
        model.embed.weight.mul_(0.7)
        logits = model(torch.tensor([[3, 4]])).logits[0, -1].double()
    p = (logits / settings_.get("temperature", 1.0)).exp()
    ranked = sorted(range(12), key=lambda i: -p[i])[: settings_.get("top_k", 12)]
    total, kept, mass = sum(p[i] for i in ranked), [], 0.0
    for i in ranked:
        if mass < settings_.get("top_p", 2.0):
            kept.append(i)
            mass += p[i] / total
    expected = torch.zeros(12, dtype=torch.float64)
    expected[kept] = n * p[kept] / p[kept].sum()
    out = generate(model, torch.tensor([[3, 4]]).expand(n, 2), max_new_tokens=1,
                   generator=torch.Generator().manual_seed(0), **settings_)  # fmt: skip
    counts = out[:, -1].bincount(minlength=12).double()
    assert counts[expected == 0].sum() == 0
    often = expected > 5
    assert often.sum() >= 2
    chi2 = ((counts - expected)[often] ** 2 / expected[often]).sum()
    assert chi2 < 40, chi2


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [generate, generate_reference])
@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1] * 29], None, "29 tokens and 4 are to follow: 1 too many for the context of 32"),
        ([[]], None, "at least one token"),
        ([[1, 2], [3, 4]], [[1, 1], [0, 0]], "Prompt 1 is empty"),
        ([[1, 17]], None, r"span 1\.\.17, the vocabulary 0\.\.16"),
        ([[-1, 2]], None, r"span -1\.\.2"),
        ([[1, 2, 3]], [[1, 1]], r"shape \(1, 2\), input_ids \(1, 3\)"),
        ([[1, 2, 3], [1, 2, 3]], [[1, 1, 1], [1, 0, 1]], "prompt 1 has a hole"),
        ([[1, 2, 3, 4]], [[0, 1, 0, 1]], "prompt 0 has a hole"),
        ([1, 2], None, r"shape \(B, T\)"),
        ([[1.0, 2.0]], None, "must be integers"),
    ],
)
def test_bad_prompts_are_refused_with_what_is_wrong(model, run, ids, mask, message):
    ids = torch.tensor(ids) if ids != [[]] else torch.zeros(1, 0, dtype=torch.long)
    mask = None if mask is None else torch.tensor(mask)
    with pytest.raises(ValueError, match=message):
        run(model, ids, mask, max_new_tokens=4)


@pytest.mark.parametrize("run", [generate, generate_reference])
@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature .* got -1.0; 0 is greedy"),
        ({"temperature": float("nan")}, "temperature .* got nan"),
        ({"temperature": float("inf")}, "temperature .* got inf"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p must lie in \(0, 1\]"),
        ({"eos_token_id": 17}, r"eos_token_id=17 .* 0\.\.16"),
        ({"eos_token_id": 1, "pad_token_id": -100}, r"pad_token_id=-100 .* 0\.\.16"),
    ],
)
def test_bad_settings_are_refused(model, run, settings_, message):
    with pytest.raises(ValueError, match=message):
        run(model, torch.tensor([[1, 2]]), **{"max_new_tokens": 4} | settings_)


def test_a_prompt_that_just_fits_is_taken(model):
    """28 + 4 = 32; padding wider than the context does not count."""
    ids = torch.ones(1, 28, dtype=torch.long)
    assert generate(model, ids, max_new_tokens=4, temperature=0.0).shape == (1, 32)
    wide = torch.cat([torch.zeros(1, 20, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(48) >= 20).long()[None]
    narrow = generate(model, ids, max_new_tokens=4, temperature=0.0)
    out = generate(model, wide, mask, max_new_tokens=4, temperature=0.0)
    assert out[0, 20:].tolist() == narrow[0].tolist()


def test_prompts_are_moved_to_the_right_end(model):
    """The literal example of ``check_prompts``, and a run in the middle."""
    ids, mask = check_prompts(model, torch.tensor([[5, 6, 0], [7, 8, 9]]),
                              torch.tensor([[1, 1, 0], [1, 1, 1]]), 4)  # fmt: skip
    assert ids.tolist() == [[0, 5, 6], [7, 8, 9]] and mask.tolist() == [[0, 1, 1], [1, 1, 1]]
    ids, mask = check_prompts(model, torch.tensor([[1, 5, 6, 2]]), torch.tensor([[0, 1, 1, 0]]), 4)
    assert ids.tolist() == [[1, 2, 5, 6]] and mask.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("run", [generate, generate_reference])
def test_prompts_of_any_integers_are_taken(model, run, dtype):
    """int32 passed the checks and died when the first token was written beside it."""
    ids, mask = padded([3, 5], "left")
    outs = [run(model, some, mask, max_new_tokens=4, temperature=0.0)
            for some in (ids, ids.to(dtype))]  # fmt: skip
    assert torch.equal(*outs) and outs[1].dtype == torch.int64
    source = torch.tensor([[3, 4, 5]])
    outs = [generate_seq2seq(t5(), some, max_new_tokens=4, temperature=0.0)
            for some in (source, source.to(dtype))]  # fmt: skip
    assert torch.equal(*outs)


@pytest.mark.parametrize("run", [generate, generate_reference, generate_seq2seq])
def test_a_mask_is_no_prompt(model, run):
    with pytest.raises(ValueError, match=r"must be integers.* got torch\.bool"):
        run(t5() if run is generate_seq2seq else model, torch.ones(1, 3) > 0, max_new_tokens=4)

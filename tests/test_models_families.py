"""GPT-2, BLOOM, Llama beside transformers; both directions; files of every family; refusals."""

import json
import math
import os
import re

import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from parity_record import Parity
from random_families import SEEDS, SIZES, build, randomise, there_and_back
from random_models import batches, chunks, positions
from safetensors.torch import load_file, save_file

from course_lib.files import read_text, write_json
from course_lib.generation import generate, generate_reference
from course_lib.models import (
    BLOOM,
    GPT2,
    BERTConfig,
    BLOOMConfig,
    GPT2Config,
    from_pretrained,
    from_transformers,
    save_pretrained,
    to_transformers,
)
from course_lib.models.families import FAMILIES
from course_lib.models.layers import Block, FeedForward, RMSNorm, alibi_slopes

SMALL = {"vocab_size": 11, "layers": 2, "heads": 3, "width": 4, "inner": 9, "length": 16,
         "tied": True}  # fmt: skip
LANGUAGE_MODELS = {"GPT-2": "GPT2LMHeadModel", "BLOOM": "BloomForCausalLM",
                   "Llama": "LlamaForCausalLM"}  # fmt: skip
EVERY = [
    "BertForMaskedLM", "BertForSequenceClassification", "RobertaForMaskedLM",
    "RobertaForSequenceClassification", "GPT2LMHeadModel", "GPT2ForSequenceClassification",
    "BloomForCausalLM", "LlamaForCausalLM", "LlamaForSequenceClassification",
    "T5ForConditionalGeneration", "BartForConditionalGeneration",
]  # fmt: skip


def small(name: str, seed: int = 0, **changes):
    """A random model over there: (name of its class) -> model."""
    sizes = {k: changes.pop(k) if k in changes else v for k, v in SMALL.items()}
    return build(getattr(transformers, name), sizes, seed, **changes)


# --- parity of the decoders ---------------------------------------------------------------------


def wide(sizes: dict) -> bool:
    """Whether float32 can tell 1e-5: LayerNorm divides the difference of two channels by its own
    size, or by √1e-5 if that is larger, and so makes rounding up to 300 times as large."""
    return sizes["heads"] * sizes["width"] >= 6


@pytest.mark.parametrize(("name", "most"), [("GPT2LMHeadModel", 1e-9), ("BloomForCausalLM", 1e-5)])
@pytest.mark.parametrize("width", [2, 4])
def test_models_of_few_channels_are_those_of_transformers_in_double_precision(name, most, width):
    """One head, so as many channels: of 245 GPT-2s of two channels, 41 differ by more than 1e-5 in
    float32, transformers' as far from the truth as ours. BLOOM's softmax stays float32 there."""
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    for seed in range(10):
        hf_model = small(name, seed, heads=1, width=width).double()
        with torch.no_grad():
            ours, theirs = (m(ids).logits for m in (from_transformers(hf_model), hf_model))
        torch.testing.assert_close(ours, theirs, atol=most, rtol=0)


@pytest.mark.parametrize("piece", LANGUAGE_MODELS)
def test_language_models_are_those_of_transformers(piece):
    """In one pass or in pieces with a cache, padded at either end. Ours count the kept tokens of
    the mask as their positions, over there they must be told."""
    hf_class = getattr(transformers, LANGUAGE_MODELS[piece])

    @settings(max_examples=28, deadline=None, derandomize=True)
    @given(st.data(), st.fixed_dictionaries(SIZES), SEEDS, st.sets(st.integers(1, 11), max_size=3))
    def run(data, sizes, seed, cuts):
        assume(piece == "Llama" or wide(sizes))
        hf_model = build(hf_class, sizes, seed)
        model = there_and_back(hf_model)
        ids, mask = data.draw(batches(sizes["vocab_size"]))
        if data.draw(st.booleans()):
            mask = torch.ones_like(mask)
        given_mask = None if mask.all() and data.draw(st.booleans()) else mask
        places = data.draw(st.sampled_from([positions(mask), None]))
        cache, outs = None, []
        with torch.no_grad():
            theirs = hf_model(
                ids, attention_mask=given_mask, position_ids=positions(mask), use_cache=False
            ).logits
            ours = model(ids, attention_mask=given_mask, position_ids=places)
            for start, end in chunks(ids.shape[1], cuts):
                out = model(
                    ids[:, start:end],
                    attention_mask=None if given_mask is None else mask[:, :end],
                    position_ids=None if places is None else places[:, start:end],
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = out.past_key_values
                outs.append(out.logits)
        parity.tried()
        kept = mask.bool()
        parity.compare(ours.logits[kept], theirs[kept])
        parity.compare(torch.cat(outs, dim=1)[kept], theirs[kept])
        assert ours.last_hidden_state.shape == (*ids.shape, model.config.n_embd)

    with Parity(piece, f"transformers.{LANGUAGE_MODELS[piece]}", 1e-5) as parity:
        run()


@pytest.mark.parametrize("piece", ["GPT-2", "Llama"])
def test_classifiers_are_those_of_transformers(piece):
    """Over there the padding is found by its id, here by the mask: both read the last token."""
    name = piece.replace("-", "") + "ForSequenceClassification"

    @settings(max_examples=14, deadline=None, derandomize=True)
    @given(st.data(), st.fixed_dictionaries(SIZES), SEEDS, st.integers(2, 5))
    def run(data, sizes, seed, n_label):
        assume(piece == "Llama" or wide(sizes))
        vocab = sizes["vocab_size"]
        hf_model = build(
            getattr(transformers, name), sizes, seed, num_labels=n_label, pad_token_id=vocab - 1
        )
        model = there_and_back(hf_model, pad_token_id=vocab - 1)
        ids, mask = data.draw(batches(vocab - 1))
        ids = ids.masked_fill(mask == 0, vocab - 1)
        with torch.no_grad():
            ours = model(ids, attention_mask=mask).logits
            theirs = hf_model(ids, attention_mask=mask, position_ids=positions(mask)).logits
        assert ours.shape == (len(ids), n_label)
        parity.tried()
        parity.compare(ours, theirs)

    with Parity(f"{piece} classifier", f"transformers.{name}", 1e-5) as parity:
        run()


# --- generation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "BloomForCausalLM"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generation_with_the_cache_is_the_reference(name, temperature):
    """Prompts of 5, 2 and 7 tokens; rows that end early are dropped from the cache."""
    for seed in range(4):
        hf_model = small(name, seed, length=32)
        model = from_transformers(hf_model)
        ids = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(seed))
        mask = torch.tensor([[0, 0] + [1] * 5, [0] * 5 + [1] * 2, [1] * 7])
        outs = [
            f(m, ids, mask, max_new_tokens=12, temperature=temperature, eos_token_id=4,
              pad_token_id=0, generator=torch.Generator().manual_seed(seed)).tolist()
            for f, m in ((generate, model), (generate_reference, model), (generate, hf_model))
        ]  # fmt: skip
        assert outs[0] == outs[1] == outs[2]
        if temperature == 0:
            theirs = hf_model.generate(
                ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=4,
                pad_token_id=0,
            )  # fmt: skip
            assert outs[0] == theirs.tolist()


def test_bloom_has_no_longest_sequence_and_gpt2_has():
    bloom, gpt2 = (from_transformers(small(n)) for n in ("BloomForCausalLM", "GPT2LMHeadModel"))
    ids = torch.ones(1, 40, dtype=torch.long)
    assert generate(bloom, ids, max_new_tokens=3).shape == (1, 43)
    with pytest.raises(ValueError, match="position 39, 24 beyond the context of 16"):
        gpt2(ids)


# --- the layers that only these families use ----------------------------------------------------


def test_alibi_slopes():
    """Eight heads: 1/2, 1/4, ... 1/256. Six: four of 2^-2h, then 2^-1 and 2^-3 of eight heads."""
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(6).tolist() == [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    assert alibi_slopes(1).tolist() == [2**-8]


def test_alibi_counts_distance_in_kept_tokens():
    """One head, slope 2^-8; mask 0 1 1 1: keys stand at 0 0 1 2, so 0 0 1 2 / 256 is added."""
    model = BLOOM(BLOOMConfig(vocab_size=5, n_layer=1, n_head=1, n_embd=4))
    added = model.added(torch.tensor([[0, 1, 1, 1]]), 0, torch.zeros(1, 4, 4))
    inf = -math.inf
    want = [[0, inf, inf, inf], [inf, 0, inf, inf], [inf, 0, 1, inf], [inf, 0, 1, 2]]
    assert added.shape == (1, 1, 4, 4)
    torch.testing.assert_close(added[0, 0] * 256, torch.tensor(want))


class Add(torch.nn.Module):
    """A sublayer that gives a constant vector, whatever else it is handed."""

    def __init__(self, *vector):
        super().__init__()
        self.vector = torch.tensor(vector)

    def forward(self, x, *_):
        return self.vector.expand_as(x)


def test_norms_before_and_after_a_sublayer():
    """x = (3, 4); attention adds (0, 0), feed-forward adds (3, 4): (6, 8) with the norm before.
    With the norm after it: rms(3, 4) = √12.5, (3, 4)/√12.5 + (3, 4) normed is (3, 4)/√12.5 again,
    for the direction never changes."""
    x = torch.tensor([[[3.0, 4.0]]])
    parts = (lambda: RMSNorm(2, 0.0)), Add(0.0, 0.0), Add(3.0, 4.0)
    with torch.no_grad():
        assert Block(*parts)(x).tolist() == [[[6.0, 8.0]]]
        torch.testing.assert_close(Block(*parts, pre_norm=False)(x), x / 12.5**0.5)


def test_a_plain_feed_forward_by_hand():
    """up = 2x - 1, ReLU, down = 3y + 1: x = 2 gives 10, x = -2 gives 1."""
    layer = FeedForward(1, 1, torch.relu)
    with torch.no_grad():
        for linear, w, b in ((layer.up, 2.0, -1.0), (layer.down, 3.0, 1.0)):
            linear.weight.fill_(w)
            linear.bias.fill_(b)
        assert layer(torch.tensor([[[2.0], [-2.0]]])).tolist() == [[[10.0], [1.0]]]


def test_first_weights_come_from_the_generator_alone_and_biases_are_zero():
    config = GPT2Config(vocab_size=7, n_layer=1, n_head=2, n_embd=4, block_size=8)
    state = torch.get_rng_state()
    a, b = (GPT2(config, torch.Generator().manual_seed(1)).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(not a[name].any() for name in a if name.endswith("bias"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GPT2Config(7, 1, 3, 8, 16), "n_embd=8 must be a multiple of n_head=3"),
        (lambda: BLOOMConfig(7, 0, 1, 8), "n_layer=0 must be a whole number"),
        (lambda: BERTConfig(7, 1, 1, 8, 8, 2.5), "block_size=2.5 must be a whole number"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [
        ("bert", "blocks.1.feed_forward.up.bias", "bert.encoder.layer.1.intermediate.dense.bias"),
        ("bert", "head_bias", "cls.predictions.decoder.bias"),
        ("gpt2", "blocks.10.attention.k.weight", "transformer.h.10.attn.c_attn.weight"),
        ("t5", "encoder.blocks.1.feed_forward_norm.weight",
         "encoder.block.1.layer.1.layer_norm.weight"),
        ("t5", "decoder.blocks.1.feed_forward_norm.weight",
         "decoder.block.1.layer.2.layer_norm.weight"),
        ("bart", "logits_bias", "final_logits_bias"),
    ],
)  # fmt: skip
def test_rows_of_the_tables_by_hand(kind, ours, theirs):
    """T5's feed-forward is layer 1 of an encoder's block and layer 2 of a decoder's."""
    assert FAMILIES[kind].name(ours) == theirs


def test_t5_numbers_its_matrices_where_there_is_a_gate():
    name = "encoder.blocks.3.feed_forward.up.weight"
    plain = "encoder.block.3.layer.1.DenseReluDense.wi.weight"
    assert FAMILIES["t5"].name(name) == plain
    assert FAMILIES["t5"].name(name, gated=True) == plain.replace("wi", "wi_1")


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_row_of_a_table_names_a_weight_of_the_models(kind):
    """A row that no model has, a typing error, would lie there unread. Each family has a language
    model, tied and untied, a classifier where it can be one, and T5 a gate or none."""
    family, seen = FAMILIES[kind], set()
    for name in family.classes:
        for tied in (True, False):
            for inner in (9, 10):
                names = from_transformers(small(name, tied=tied, inner=inner)).state_dict()
                seen |= {re.sub(r"(?<=blocks\.)\d+", "{i}", n) for n in names}
    seen |= {n.rpartition(".")[0] for n in seen}
    unread = {"head"} if kind == "bart" else set()  # always tied; a copy in files has that name
    rows = {*family.weights, *family.gated} - unread
    assert {row for row in rows if not row.startswith("encoder.blocks.{i}.cross")} <= seen


# --- files --------------------------------------------------------------------------------------


def inputs_of(model) -> dict:
    ids = torch.randint(4, 11, (2, 6), generator=torch.Generator().manual_seed(5))
    decoder = {"decoder_input_ids": ids.flip(1)} if hasattr(model, "decoder") else {}
    return {"input_ids": ids, **decoder}


def assert_same_model(a, b) -> None:
    assert a.config == b.config
    x, y = a.state_dict(), b.state_dict()
    assert x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_files_open_on_both_sides(tmp_path, name, tied):
    """What we save, transformers reads; what it saves, we read; logits within 1e-5."""
    model = from_transformers(small(name, tied=tied, pad_token_id=3))
    save_pretrained(model, tmp_path / "ours", pad_token_id=3)
    assert_same_model(from_pretrained(tmp_path / "ours"), model)
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        a, b = (m(**inputs_of(model)).logits for m in (model, theirs))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same_model(from_pretrained(tmp_path / "theirs"), model)
    to_transformers(model).save_pretrained(tmp_path / "copy")
    assert_same_model(from_pretrained(tmp_path / "copy"), model)


def edit(folder, rename=lambda name: name, drop=(), **fields) -> None:
    """Change a saved model's config, and the names of its weights."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **fields}), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    kept = {rename(name): t.clone() for name, t in weights.items() if name not in drop}
    save_file(kept, folder / "model.safetensors.new")  # a loaded file is still open: replace it
    os.replace(folder / "model.safetensors.new", folder / "model.safetensors")


def test_names_of_early_files(tmp_path):
    """BERT's LayerNorm.gamma and lone cls.predictions.bias, its pooler; GPT-2 without a prefix."""
    bert, gpt2 = (from_transformers(small(n)) for n in ("BertForMaskedLM", "GPT2LMHeadModel"))
    save_pretrained(bert, tmp_path / "bert")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    edit(tmp_path / "bert", lambda n: next((n.replace(a, b) for a, b in old.items() if a in n), n),
         drop={"cls.predictions.decoder.bias"})  # fmt: skip
    path = tmp_path / "bert" / "model.safetensors"
    more = {"bert.pooler.dense.weight": torch.ones(3), "cls.seq_relationship.bias": torch.ones(2)}
    save_file({**{k: v.clone() for k, v in load_file(path).items()}, **more}, f"{path}.new")
    os.replace(f"{path}.new", path)
    assert_same_model(from_pretrained(tmp_path / "bert"), bert)
    save_pretrained(gpt2, tmp_path / "gpt2")
    edit(tmp_path / "gpt2", lambda n: n.removeprefix("transformer."), n_ctx=16)
    assert_same_model(from_pretrained(tmp_path / "gpt2"), gpt2)


@pytest.mark.parametrize("name", EVERY)
def test_a_missing_and_a_strange_weight_are_named(tmp_path, name):
    model = from_transformers(small(name))
    save_pretrained(model, tmp_path)
    lost = next(n for n in load_file(tmp_path / "model.safetensors") if "q" in n or "c_attn" in n)
    edit(tmp_path, drop={lost})
    with pytest.raises(ValueError, match=r"missing \['.*blocks"):
        from_pretrained(tmp_path)
    save_pretrained(model, tmp_path)
    edit(tmp_path, lambda n: "strange.weight" if n == lost else n)
    with pytest.raises(ValueError, match=r"extra \['strange.weight'\]"):
        from_pretrained(tmp_path)


def test_tied_in_name_but_not_in_weights_is_refused():
    hf_model = small("GPT2LMHeadModel")
    hf_model.lm_head.weight = torch.nn.Parameter(hf_model.lm_head.weight + 1)
    with pytest.raises(ValueError, match="ties the output matrix to the embeddings, but they diff"):
        from_transformers(hf_model)
    hf_model = small("BartForConditionalGeneration")
    hf_model.model.encoder.embed_tokens.weight = torch.nn.Parameter(torch.zeros(11, 12))
    with pytest.raises(ValueError, match=r"encoder\.embed_tokens\.weight differs .*tied"):
        from_transformers(hf_model)


# --- fields that are refused --------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_an_unknown_field_and_a_missing_one_are_named(tmp_path, name):
    save_pretrained(from_transformers(small(name)), tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**fields, "sliding_window": 7}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"unknown config fields \['sliding_window'\]"):
        from_pretrained(tmp_path)
    write_json(path, {k: v for k, v in fields.items() if k != "vocab_size"})
    with pytest.raises(ValueError, match=r"lacks the fields \['vocab_size'\]"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("BertForMaskedLM", "hidden_act", "relu"),
        ("BertForMaskedLM", "is_decoder", True),
        ("BertForMaskedLM", "add_cross_attention", True),
        ("BertForMaskedLM", "position_embedding_type", "relative_key"),
        ("RobertaForMaskedLM", "hidden_act", "gelu_new"),
        ("GPT2LMHeadModel", "activation_function", "relu"),
        ("GPT2LMHeadModel", "scale_attn_weights", False),
        ("GPT2LMHeadModel", "scale_attn_by_inverse_layer_idx", True),
        ("GPT2LMHeadModel", "reorder_and_upcast_attn", True),
        ("GPT2LMHeadModel", "add_cross_attention", True),
        ("BloomForCausalLM", "apply_residual_connection_post_layernorm", True),
        ("BloomForCausalLM", "slow_but_exact", True),
        ("LlamaForCausalLM", "attention_bias", True),
        ("LlamaForCausalLM", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1.0}),
        ("LlamaForCausalLM", "head_dim", 6),
        ("T5ForConditionalGeneration", "feed_forward_proj", "gated-silu"),
        ("T5ForConditionalGeneration", "num_decoder_layers", 3),
        ("T5ForConditionalGeneration", "is_decoder", True),
        ("BartForConditionalGeneration", "activation_function", "relu"),
        ("BartForConditionalGeneration", "decoder_layers", 3),
        ("BartForConditionalGeneration", "decoder_ffn_dim", 3),
        ("BartForConditionalGeneration", "tie_word_embeddings", False),
        ("BartForConditionalGeneration", "normalize_before", True),
        ("BertForMaskedLM", "architectures", ["BertForQuestionAnswering"]),
        ("BloomForCausalLM", "architectures", ["BloomForSequenceClassification"]),
        ("LlamaForCausalLM", "model_type", "mistral"),
    ],
)
def test_another_computation_is_refused_by_name(tmp_path, name, field, value):
    save_pretrained(from_transformers(small(name)), tmp_path)
    path = tmp_path / "config.json"
    write_json(path, {**json.loads(read_text(path)), field: value})
    with pytest.raises(ValueError, match=f"config field {field}=.* is not supported"):
        from_pretrained(tmp_path)


def test_a_model_with_another_head_is_refused_by_its_class():
    config = small("BertForMaskedLM").config
    other = randomise(transformers.BertForQuestionAnswering(config), 0)
    with pytest.raises(ValueError, match="architectures='BertForQuestionAnswering' is not supp"):
        from_transformers(other)

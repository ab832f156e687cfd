"""Weights across the border, both ways; unreadable files are refused; saving is all or nothing."""

import json
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import batches, llama, llamas, positions
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers import LlamaConfig as HFConfig

from course_lib.files import write_json
from course_lib.models import (
    Llama,
    from_pretrained,
    from_transformers,
    save_pretrained,
    to_transformers,
)

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def assert_equal_weights(one: Llama, two: Llama):
    a, b = one.state_dict(), two.state_dict()
    assert one.config == two.config and set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@st.composite
def hf_llamas(draw) -> LlamaForCausalLM:
    """A model that transformers made, first weights fifteen times as large as by default."""
    kv, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    config = HFConfig(
        vocab_size=draw(st.integers(2, 19)), hidden_size=kv * group * draw(st.sampled_from([2, 6])),
        intermediate_size=draw(st.integers(1, 17)), num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=kv * group, num_key_value_heads=kv, max_position_embeddings=16,
        rms_norm_eps=draw(st.sampled_from([1e-6, 0.1])), initializer_range=0.3,
        tie_word_embeddings=draw(st.booleans()), attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": draw(st.sampled_from([5.0, 1e4]))},
        pad_token_id=None, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 2**16)))
        return LlamaForCausalLM(config).eval()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_from_transformers_gives_the_same_logits(data):
    hf_model = data.draw(hf_llamas())
    input_ids, mask = data.draw(batches(hf_model.config.vocab_size))
    model = from_transformers(hf_model)
    with torch.no_grad():
        ours = model(input_ids, attention_mask=mask).logits
        theirs = hf_model(
            input_ids, attention_mask=mask, position_ids=positions(mask)
        ).logits
    assert (ours - theirs).abs()[mask.bool()].max() <= 1e-5


@settings(max_examples=40, deadline=None, derandomize=True)
@given(llamas())
def test_there_and_back_is_the_same_model(model):
    assert_equal_weights(from_transformers(to_transformers(model)), model)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_saved_weights_open_in_both_libraries(tmp_path_factory, data):
    """save_pretrained -> AutoModelForCausalLM and from_pretrained."""
    model, folder = data.draw(llamas()), tmp_path_factory.mktemp("saved")
    input_ids, mask = data.draw(batches(model.config.vocab_size))
    save_pretrained(model, folder)
    assert sorted(bytes_of(folder)) == ["config.json", "model.safetensors"]
    assert_equal_weights(from_pretrained(folder), model)
    hf_model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert type(hf_model) is LlamaForCausalLM
    with torch.no_grad():
        ours = model(input_ids, attention_mask=mask).logits
        theirs = hf_model(
            input_ids, attention_mask=mask, position_ids=positions(mask)
        ).logits
    assert (ours - theirs).abs()[mask.bool()].max() <= 1e-5


@settings(max_examples=10, deadline=None, derandomize=True)
@given(hf_llamas())
def test_what_transformers_saves_opens_here(tmp_path_factory, hf_model):
    folder = tmp_path_factory.mktemp("theirs")
    hf_model.save_pretrained(folder)
    assert_equal_weights(from_pretrained(folder), from_transformers(hf_model))


def test_copies_share_no_memory():
    model = llama()
    hf_model = to_transformers(model)
    back = from_transformers(hf_model)
    for other in (hf_model.model.norm.weight, back.norm.weight):
        other.data.zero_()
    assert (model.norm.weight > 0.4).all()
    assert back.embed.weight.data_ptr() != hf_model.model.embed_tokens.weight.data_ptr()


def test_crossing_the_border_uses_up_no_random_numbers(tmp_path):
    model = llama()
    before = torch.get_rng_state()
    from_transformers(to_transformers(model))
    save_pretrained(model, tmp_path)
    from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_modes_and_precision_cross_over():
    model = llama().train()
    assert to_transformers(model).training and from_transformers(to_transformers(model)).training
    assert not to_transformers(model.eval()).training
    half = to_transformers(llama().bfloat16())
    assert half.dtype == torch.bfloat16
    assert from_transformers(half).embed.weight.dtype == torch.bfloat16


def test_rotary_frequencies_keep_their_precision_in_bfloat16():
    """bfloat16 keeps 8 bits: rounding 0.31623 = 10^(-1/2) to 0.31641 turns position 15 off by 0.003
    and position 100,000 by 18. transformers keeps the frequencies in float32; so does the copy.
    """
    model = llama(n_head=1, n_kv_head=1, n_embd=4, rope_theta=10.0)
    frequencies = to_transformers(model.bfloat16()).model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 10**-0.5]))


def test_stored_and_loaded_precision(tmp_path):
    """Stored in bfloat16 the weights are the rounded ones, and load as float32 unless asked."""
    model = llama()
    save_pretrained(model, tmp_path, dtype=torch.bfloat16, eos_token_id=0, pad_token_id=1)
    assert load_file(tmp_path / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (fields["dtype"], fields["eos_token_id"], fields["pad_token_id"]) == ("bfloat16", 0, 1)
    loaded = from_pretrained(tmp_path)
    assert loaded.embed.weight.dtype == torch.float32
    assert torch.equal(loaded.embed.weight, model.embed.weight.bfloat16().float())
    half = from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(half.embed.weight, model.embed.weight.bfloat16())
    assert model.embed.weight.dtype == torch.float32


@pytest.fixture
def saved(tmp_path):
    """A folder with a whole model."""
    folder = tmp_path / "model"
    save_pretrained(llama(), folder)
    return folder


def change_config(folder, **changes):
    path = folder / "config.json"
    fields = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    write_json(path, {k: v for k, v in fields.items() if v != "absent"})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mistral"}, "model_type='mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling=.*linear"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters=.*llama3"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"head_dim": 8}, "head_dim=8"),
        ({"sliding_window": 4, "logit_scale": 2}, r"\['logit_scale', 'sliding_window'\]"),
        ({"hidden_size": "absent"}, r"lacks the fields \['hidden_size'\]"),
        ({"rms_norm_eps": "absent"}, r"lacks the fields \['rms_norm_eps'\]"),
        ({"num_attention_heads": "four"}, "n_head='four' must be a whole number"),
        ({"num_attention_heads": 5}, "n_embd=24 must be a multiple of n_head=5"),
    ],
)
def test_a_config_that_means_another_computation_is_refused_by_name(saved, changes, named):
    change_config(saved, **changes)
    with pytest.raises(ValueError, match=named):
        from_pretrained(saved)


def test_older_configs_say_the_same_in_other_places(saved):
    """rope_theta at the top, no key-value heads: as many as heads; no tying: two matrices."""
    save_pretrained(llama(n_kv_head=4, tie_embeddings=False, rope_theta=77.0), saved)
    want = from_pretrained(saved)
    change_config(saved, rope_parameters="absent", rope_theta=77.0, num_key_value_heads="absent",
                  tie_word_embeddings="absent", head_dim=6, torch_dtype="float32")  # fmt: skip
    assert_equal_weights(from_pretrained(saved), want)


def test_another_architecture_is_refused():
    neo = GPTNeoForCausalLM(GPTNeoConfig(
        vocab_size=7, max_position_embeddings=8, hidden_size=4, num_layers=1, num_heads=1,
        attention_types=[[["global"], 1]],
    ))  # fmt: skip
    with pytest.raises(ValueError, match="model_type='gpt_neo' is not supported.*transformers"):
        from_transformers(neo)
    mistral = MistralForCausalLM(MistralConfig(
        vocab_size=7, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    ))  # fmt: skip
    with pytest.raises(ValueError, match="model_type='mistral'"):
        from_transformers(mistral)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(share=st.floats(0, 0.999))
def test_truncated_weights_are_refused_wherever_they_end(tmp_path_factory, share):
    folder = tmp_path_factory.mktemp("cut")
    save_pretrained(llama(), folder)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="model.safetensors is truncated or corrupted.*again"):
        from_pretrained(folder)


@pytest.mark.parametrize("start", [b"\xff" * 8, b"version https://git-lfs.github.com/spec/v1\n"])
def test_corrupted_weights_are_refused(saved, start):
    path = saved / "model.safetensors"
    path.write_bytes(start + path.read_bytes()[len(start) :])
    with pytest.raises(ValueError, match="truncated or corrupted"):
        from_pretrained(saved)


@pytest.mark.parametrize("content", [b"", b'{"vocab_size": 1', b"\xff\xfe{}", b"[1, 2]"])
def test_a_config_that_is_no_config_is_refused(saved, content):
    (saved / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json .*fetch it again"):
        from_pretrained(saved)


def test_weights_that_do_not_fit_the_config_are_refused_by_name(saved):
    path = saved / "model.safetensors"
    weights = load_file(path)
    norm = weights.pop("model.norm.weight")
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"missing \['norm.weight'\], extra \[\]"):
        from_pretrained(saved)
    save_file({**weights, "model.norm.weight": norm, "model.norm.bias": norm.clone()}, path)
    with pytest.raises(ValueError, match=r"missing \[\], extra \['norm.bias'\]"):
        from_pretrained(saved)
    save_file({**weights, "model.norm.weight": norm[:5].clone()}, path)
    with pytest.raises(ValueError, match=r"norm.weight has shape \(5,\).*asks for \(24,\)"):
        from_pretrained(saved)


def test_untied_weights_need_their_output_matrix(saved):
    change_config(saved, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"missing \['head.weight'\]"):
        from_pretrained(saved)


def test_missing_files_and_folders_are_named(saved, tmp_path):
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        from_pretrained(saved)
    for nowhere in (tmp_path / "nowhere", "nowhere", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no folder .*Give a folder"):
            from_pretrained(nowhere)


def test_a_hub_name_without_a_network_is_refused_with_advice():
    with pytest.raises(FileNotFoundError, match="no folder owner/no-such.*name and the network"):
        from_pretrained("owner/no-such")


# --- what wraps a model, or a part of it --------------------------------------------------------


@pytest.mark.parametrize("part", ["whole", "block", "both", "in place"])
def test_a_compiled_model_is_saved_under_the_plain_names(tmp_path, part):
    """Compiling puts ``_orig_mod.`` into the names of the weights, wherever it is done."""
    model, plain = llama(), tmp_path / "plain"
    save_pretrained(model, plain)
    if part in ("block", "both"):
        model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    if part in ("whole", "both"):
        model = torch.compile(model, backend="eager")
    if part == "in place":
        model.compile(backend="eager")
    assert any("_orig_mod" in name for name in model.state_dict()) == (part != "in place")
    save_pretrained(model, tmp_path / "compiled")
    assert bytes_of(tmp_path / "compiled") == bytes_of(plain)
    theirs = to_transformers(model).state_dict()
    assert theirs.keys() == to_transformers(llama()).state_dict().keys()


class Wrapped(torch.nn.Module):
    """A layer inside another, as adapters are put on."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize("write", [save_pretrained, lambda model, _: to_transformers(model)])
def test_a_wrapped_layer_is_refused_by_its_names(tmp_path, write):
    """It would be written as ``q_proj.linear.weight``, which nobody reads."""
    model = llama()
    model.blocks[0].attention.q = Wrapped(model.blocks[0].attention.q)
    with pytest.raises(ValueError, match=r"blocks\.0\.attention\.q\.linear\.weight'\], which no "
                       r"reader.*in their place: \['blocks\.0\.attention\.q\.weight"):  # fmt: skip
        write(model, tmp_path / "wrapped")
    assert not (tmp_path / "wrapped").exists()


def test_a_weight_of_another_shape_and_one_too_few_are_refused(tmp_path):
    model = llama()
    model.blocks[1].feed_forward.up = torch.nn.Linear(24, 21, bias=False)
    with pytest.raises(ValueError, match=r"up\.weight has shape \(21, 24\).* asks for \(20, 24\)"):
        save_pretrained(model, tmp_path)
    model = llama()
    del model.norm.weight
    with pytest.raises(ValueError, match=r"lacks the weights \['norm.weight'\]"):
        save_pretrained(model, tmp_path)


def test_a_model_of_another_library_is_refused(tmp_path):
    for other in (to_transformers(llama()), Wrapped(llama())):
        with pytest.raises(TypeError, match=f"expected one of the course's models, got "
                           f"{type(other).__name__}: unwrap"):  # fmt: skip
            save_pretrained(other, tmp_path)


# --- several files ------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    """A folder as transformers writes a large model: an index, and the weights in several files."""
    folder = tmp_path / "shards"
    to_transformers(llama()).save_pretrained(folder, max_shard_size="5KB")
    return folder


def test_weights_in_several_files_are_read_by_their_index(shards):
    names = {path.name for path in shards.iterdir()}
    assert "model.safetensors.index.json" in names and "model.safetensors" not in names
    assert len([name for name in names if name.startswith("model-")]) >= 3
    assert_equal_weights(from_pretrained(shards), llama())


def test_a_single_file_beside_an_index_is_the_model(shards):
    """As transformers has it: saving over a large model is saving the model."""
    save_pretrained(llama(seed=1), shards)
    assert_equal_weights(from_pretrained(shards), llama(seed=1))


def index_of(folder):
    path = folder / "model.safetensors.index.json"
    return path, json.loads(path.read_text())


def test_a_missing_or_cut_shard_is_named(shards):
    last = max(shards.glob("model-*"))
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"{last.name} is truncated or corrupted.*again"):
        from_pretrained(shards)
    last.unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {last.name}"):
        from_pretrained(shards)


def test_an_index_that_does_not_fit_its_files_is_refused(shards):
    path, index = index_of(shards)
    places = index["weight_map"]
    first, last = min(places.values()), max(places.values())
    moved = next(name for name, file in places.items() if file == first)
    path.write_text(json.dumps({"weight_map": {**places, moved: last}}))
    with pytest.raises(ValueError, match=f"{first} does not hold .*missing .*extra .*{moved}"):
        from_pretrained(shards)
    (shards.parent / "secret.safetensors").write_bytes((shards / first).read_bytes())
    for bad in ({}, {"weight_map": {}}, {"weight_map": [1]}, {"weight_map": {"x": 1}},
                {"weight_map": {"x": "../secret.safetensors"}}):  # fmt: skip
        path.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match="names no files of its folder"):
            from_pretrained(shards)
    path.write_text("{")
    with pytest.raises(ValueError, match="index.json holds no fields"):
        from_pretrained(shards)


@contextmanager
def full_disk():
    """From the 2,000th byte of a file on, writing fails, as it does on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_midway_leaves_the_old_files_whole(saved):
    """The weights take more than 2,000 bytes, so the disk fills up in the middle of them."""
    before, other = bytes_of(saved), llama(seed=1)
    assert len(before["model.safetensors"]) > 2000
    with pytest.raises(SafetensorError, match="too large"), full_disk():
        save_pretrained(other, saved)
    assert bytes_of(saved) == before


def test_a_failing_first_write_leaves_nothing(tmp_path):
    with pytest.raises(SafetensorError, match="too large"), full_disk():
        save_pretrained(llama(), tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_weights_are_not_replaced_when_the_config_cannot_be_written(saved):
    """An id that JSON does not know stops the second file, after the first was written aside."""
    before = bytes_of(saved)
    with pytest.raises(TypeError):
        save_pretrained(llama(seed=1), saved, eos_token_id=torch.tensor(0))
    assert bytes_of(saved) == before


def test_saving_over_a_model_replaces_both_files(saved):
    other = llama(seed=1, n_layer=1)
    save_pretrained(other, saved)
    assert_equal_weights(from_pretrained(saved), other)
    assert sorted(bytes_of(saved)) == ["config.json", "model.safetensors"]

"""Random tiny models of transformers' families, built there, for parity and the way back."""

import torch
import transformers
from hypothesis import strategies as st
from torch import nn

from course_lib.models import from_transformers, to_transformers

SEEDS = st.integers(0, 2**16)
SIZES = {
    "vocab_size": st.integers(5, 23), "layers": st.integers(1, 2), "heads": st.integers(1, 5),
    "width": st.sampled_from([2, 4, 6]), "inner": st.integers(1, 21),
    "length": st.integers(12, 20), "tied": st.booleans(),
}  # fmt: skip
"""``width`` is a head's; its range is even because Llama turns channels in pairs."""


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Weights that let every part show: no zero bias, no flat attention, no two norms alike."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias") and p.ndim == 1:
                p.normal_(std=0.3, generator=g)
            elif p.ndim == 1:
                p.uniform_(0.5, 1.5, generator=g)
            else:
                p.normal_(std=p.shape[-1] ** -0.5, generator=g)
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.normal_(generator=g)
    return model.eval()


def bert(vocab_size, layers, heads, width, inner, length, tied, **more):
    return transformers.BertConfig(
        vocab_size=vocab_size, num_hidden_layers=layers, num_attention_heads=heads,
        hidden_size=heads * width, intermediate_size=inner, max_position_embeddings=length,
        tie_word_embeddings=tied, type_vocab_size=3, **more,
    )  # fmt: skip


def roberta(vocab_size, layers, heads, width, inner, length, tied, **more):
    return transformers.RobertaConfig(
        vocab_size=vocab_size, num_hidden_layers=layers, num_attention_heads=heads,
        hidden_size=heads * width, intermediate_size=inner, max_position_embeddings=length + 4,
        tie_word_embeddings=tied, type_vocab_size=3, bos_token_id=0, eos_token_id=2,
        **{"pad_token_id": 3, **more},
    )  # fmt: skip


def gpt2(vocab_size, layers, heads, width, inner, length, tied, **more):
    return transformers.GPT2Config(
        vocab_size=vocab_size, n_layer=layers, n_head=heads, n_embd=heads * width,
        n_inner=None if inner % 3 == 0 else inner, n_positions=length, tie_word_embeddings=tied,
        **{"bos_token_id": None, "eos_token_id": None, **more},
    )  # fmt: skip


def bloom(vocab_size, layers, heads, width, inner, length, tied, **more):
    return transformers.BloomConfig(
        vocab_size=vocab_size, n_layer=layers, n_head=heads, hidden_size=heads * width,
        tie_word_embeddings=tied, **more,
    )  # fmt: skip


def llama(vocab_size, layers, heads, width, inner, length, tied, **more):
    return transformers.LlamaConfig(
        vocab_size=vocab_size, num_hidden_layers=layers, num_attention_heads=2 * heads,
        num_key_value_heads=heads, hidden_size=2 * heads * width, intermediate_size=inner,
        max_position_embeddings=length, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0}, **more,
    )  # fmt: skip


def t5(vocab_size, layers, heads, width, inner, length, tied, **more):
    return transformers.T5Config(
        vocab_size=vocab_size, num_layers=layers, num_heads=heads, d_kv=width, d_model=7 + inner,
        d_ff=inner, relative_attention_num_buckets=8, relative_attention_max_distance=length - 4,
        feed_forward_proj="relu" if inner % 2 else "gated-gelu", tie_word_embeddings=tied,
        decoder_start_token_id=0, **more,
    )  # fmt: skip


def bart(vocab_size, layers, heads, width, inner, length, tied, **more):
    return transformers.BartConfig(
        vocab_size=vocab_size, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, d_model=heads * width,
        encoder_ffn_dim=inner, decoder_ffn_dim=inner, max_position_embeddings=length,
        scale_embedding=tied, decoder_start_token_id=2, **more,
    )  # fmt: skip


def build(hf_class, sizes: dict, seed: int, **more):
    """A random model over there; T5's output matrix is untied where its config says so."""
    family = globals()[hf_class.config_class.model_type]
    hf_model = hf_class(family(**sizes, **more))
    if hf_class is transformers.T5ForConditionalGeneration and not sizes["tied"]:
        hf_model.lm_head.weight = nn.Parameter(hf_model.lm_head.weight.detach().clone())
    return randomise(hf_model, seed)


def there_and_back(hf_model, pad_token_id: int | None = None):
    """Our copy; going back from it must give every weight of the original, bit by bit.

    ``*predictions.bias`` and ``lm_head.bias`` of an untied encoder are never read over there.
    """
    ours = from_transformers(hf_model)
    again = to_transformers(ours, pad_token_id)
    assert type(again) is type(hf_model)
    want, got = hf_model.state_dict(), again.state_dict()
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        unread = name in ("cls.predictions.bias", "lm_head.bias")
        assert torch.equal(tensor, got[name]) or unread, name
    return ours

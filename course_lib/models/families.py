"""What transformers calls the parts: the config fields and the weights of each family.

The tables are rows of (our name, their name). A row of ``weights`` names a layer, whose ``weight``
and ``bias`` it stands for, or a single parameter; ``{i}`` is the number of the block.
"""

import re
from dataclasses import dataclass, field, replace

from course_lib.models import decoder, encoder, seq2seq

FIXED = {
    "is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute",
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False, "apply_residual_connection_post_layernorm": False,
    "slow_but_exact": False, "rope_scaling": None, "rope_interleaved": False,
    "static_position_embeddings": False, "normalize_before": False, "normalize_embedding": True,
    "add_final_layer_norm": False, "add_bias_logits": False,
}  # fmt: skip
"""Fields that, in whatever family they stand, may have this value only."""

WITHOUT_EFFECT = {
    # of every family
    "model_type", "architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype",
    "return_dict", "output_attentions", "output_hidden_states", "output_past", "use_cache",
    "chunk_size_feed_forward", "is_encoder_decoder", "prefix", "problem_type", "id2label",
    "label2id", "num_labels", "_num_labels", "bos_token_id", "eos_token_id", "pad_token_id",
    "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "unk_token_id",
    "initializer_range", "initializer_factor", "init_std", "gradient_checkpointing",
    "_attn_implementation_autoset", "transformers.js_config", "task_specific_params",
    "finetuning_task", "early_stopping", "num_beams", "max_length", "min_length", "length_penalty",
    "no_repeat_ngram_size",
    # dropout's
    "classifier_dropout", "classif_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob",
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "attention_dropout",
    "activation_dropout", "dropout", "dropout_rate", "encoder_layerdrop", "decoder_layerdrop",
    "summary_first_dropout", "bias_dropout_fusion",
    # of a single family
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "n_ctx",
    "seq_length", "attention_softmax_in_fp32", "masked_softmax_fusion", "offset_alibi",
    "skip_bias_add", "skip_bias_add_qkv", "is_llama_config", "extra_pos_embeddings",
}  # fmt: skip
"""Fields that change no logits, or (labels, tokens) are read on their own."""

BLOCK = re.compile(r"(?<=\bblocks\.)\d+")
"""The number of a block in our name of a weight."""


@dataclass
class Family:
    """One family's classes on both sides of the border, and the names they use."""

    kind: str  # transformers' ``model_type``
    model: type
    config: type
    classes: tuple[str, ...]  # transformers' language model, and its classifier if we have one
    fields: tuple[tuple[str, str], ...]  # of the config; theirs that are one field here must agree
    weights: dict[str, str]
    gated: dict[str, str] = field(default_factory=dict)  # rows that replace others with a gate
    fixed: dict = field(default_factory=dict)  # more fields that may have this value only
    defaults: dict = field(default_factory=dict)  # of fields that files may leave out
    special: tuple[str, ...] = ()  # fields that ``configs.py`` reads on its own
    copies: dict[str, str] = field(default_factory=dict)  # their second copy -> their original
    fused: int | None = None  # the axis of q, k, v in one matrix: 0 is (3, H, D), 1 is (H, 3, D)
    transposed: bool = False  # the matrices of the blocks are stored (in, out)

    def name(self, ours: str, gated: bool = False) -> str:
        """transformers' name of the weight that we call ``ours``."""
        table = {**self.weights, **(self.gated if gated else {})}
        row, number = BLOCK.sub("{i}", ours), BLOCK.search(ours)
        if row not in table:
            row, _, kind = row.rpartition(".")  # weight or bias
            table = {row: f"{table[row]}.{kind}"}
        return table[row].format(i=number and number[0])


BERT = Family(
    "bert", encoder.BERT, encoder.BERTConfig, ("BertForMaskedLM", "BertForSequenceClassification"),
    fields=(
        ("vocab_size", "vocab_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("n_embd", "hidden_size"),
        ("n_inner", "intermediate_size"),
        ("block_size", "max_position_embeddings"),
        ("n_token_type", "type_vocab_size"),
        ("norm_eps", "layer_norm_eps"),
        ("tie_embeddings", "tie_word_embeddings"),
    ),
    weights={
        "embed": "bert.embeddings.word_embeddings",
        "positions": "bert.embeddings.position_embeddings",
        "token_types": "bert.embeddings.token_type_embeddings",
        "embed_norm": "bert.embeddings.LayerNorm",
        "blocks.{i}.attention.q": "bert.encoder.layer.{i}.attention.self.query",
        "blocks.{i}.attention.k": "bert.encoder.layer.{i}.attention.self.key",
        "blocks.{i}.attention.v": "bert.encoder.layer.{i}.attention.self.value",
        "blocks.{i}.attention.out": "bert.encoder.layer.{i}.attention.output.dense",
        "blocks.{i}.attention_norm": "bert.encoder.layer.{i}.attention.output.LayerNorm",
        "blocks.{i}.feed_forward.up": "bert.encoder.layer.{i}.intermediate.dense",
        "blocks.{i}.feed_forward.down": "bert.encoder.layer.{i}.output.dense",
        "blocks.{i}.feed_forward_norm": "bert.encoder.layer.{i}.output.LayerNorm",
        "transform": "cls.predictions.transform.dense",
        "transform_norm": "cls.predictions.transform.LayerNorm",
        "head": "cls.predictions.decoder",
        "head_bias": "cls.predictions.decoder.bias",
        "pooler": "bert.pooler.dense",
        "classifier": "classifier",
    },
    fixed={"hidden_act": "gelu"},
    defaults={"layer_norm_eps": 1e-12, "type_vocab_size": 2},
    copies={"cls.predictions.bias": "cls.predictions.decoder.bias"},
)  # fmt: skip
ROBERTA = replace(
    BERT, kind="roberta", model=encoder.RoBERTa, config=encoder.RoBERTaConfig,
    classes=("RobertaForMaskedLM", "RobertaForSequenceClassification"),
    fields=(*BERT.fields, ("pad_token_id", "pad_token_id")),
    weights={
        **{ours: theirs.replace("bert.", "roberta.") for ours, theirs in BERT.weights.items()},
        "transform": "lm_head.dense",
        "transform_norm": "lm_head.layer_norm",
        "head": "lm_head.decoder",
        "head_bias": "lm_head.decoder.bias",
        "pooler": "classifier.dense",
        "classifier": "classifier.out_proj",
    },
    copies={"lm_head.bias": "lm_head.decoder.bias"},
)  # fmt: skip
GPT2 = Family(
    "gpt2", decoder.GPT2, decoder.GPT2Config, ("GPT2LMHeadModel", "GPT2ForSequenceClassification"),
    fields=(
        ("vocab_size", "vocab_size"),
        ("n_layer", "n_layer"),
        ("n_head", "n_head"),
        ("n_embd", "n_embd"),
        ("n_inner", "n_inner"),
        ("block_size", "n_positions"),
        ("norm_eps", "layer_norm_epsilon"),
        ("tie_embeddings", "tie_word_embeddings"),
    ),
    weights={
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "blocks.{i}.attention_norm": "transformer.h.{i}.ln_1",
        "blocks.{i}.attention.q": "transformer.h.{i}.attn.c_attn",
        "blocks.{i}.attention.k": "transformer.h.{i}.attn.c_attn",
        "blocks.{i}.attention.v": "transformer.h.{i}.attn.c_attn",
        "blocks.{i}.attention.out": "transformer.h.{i}.attn.c_proj",
        "blocks.{i}.feed_forward_norm": "transformer.h.{i}.ln_2",
        "blocks.{i}.feed_forward.up": "transformer.h.{i}.mlp.c_fc",
        "blocks.{i}.feed_forward.down": "transformer.h.{i}.mlp.c_proj",
        "norm": "transformer.ln_f",
        "head": "lm_head",
        "classifier": "score",
    },
    fixed={"activation_function": "gelu_new"},
    defaults={"n_inner": None},
    fused=0, transposed=True,
)  # fmt: skip
BLOOM = Family(
    "bloom", decoder.BLOOM, decoder.BLOOMConfig, ("BloomForCausalLM",),
    fields=(
        ("vocab_size", "vocab_size"),
        ("n_layer", "n_layer"),
        ("n_head", "n_head"),
        ("n_embd", "hidden_size"),
        ("norm_eps", "layer_norm_epsilon"),
        ("tie_embeddings", "tie_word_embeddings"),
    ),
    weights={
        "embed": "transformer.word_embeddings",
        "embed_norm": "transformer.word_embeddings_layernorm",
        "blocks.{i}.attention_norm": "transformer.h.{i}.input_layernorm",
        "blocks.{i}.attention.q": "transformer.h.{i}.self_attention.query_key_value",
        "blocks.{i}.attention.k": "transformer.h.{i}.self_attention.query_key_value",
        "blocks.{i}.attention.v": "transformer.h.{i}.self_attention.query_key_value",
        "blocks.{i}.attention.out": "transformer.h.{i}.self_attention.dense",
        "blocks.{i}.feed_forward_norm": "transformer.h.{i}.post_attention_layernorm",
        "blocks.{i}.feed_forward.up": "transformer.h.{i}.mlp.dense_h_to_4h",
        "blocks.{i}.feed_forward.down": "transformer.h.{i}.mlp.dense_4h_to_h",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
    fixed={"n_inner": None},
    special=("pretraining_tp",), fused=1,
)  # fmt: skip
LLAMA = Family(
    "llama", decoder.Llama, decoder.LlamaConfig,
    ("LlamaForCausalLM", "LlamaForSequenceClassification"),
    fields=(
        ("vocab_size", "vocab_size"),
        ("n_embd", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("n_kv_head", "num_key_value_heads"),
        ("n_inner", "intermediate_size"),
        ("block_size", "max_position_embeddings"),
        ("norm_eps", "rms_norm_eps"),
        ("tie_embeddings", "tie_word_embeddings"),
    ),
    weights={
        "embed": "model.embed_tokens",
        "blocks.{i}.attention_norm": "model.layers.{i}.input_layernorm",
        "blocks.{i}.attention.q": "model.layers.{i}.self_attn.q_proj",
        "blocks.{i}.attention.k": "model.layers.{i}.self_attn.k_proj",
        "blocks.{i}.attention.v": "model.layers.{i}.self_attn.v_proj",
        "blocks.{i}.attention.out": "model.layers.{i}.self_attn.o_proj",
        "blocks.{i}.feed_forward_norm": "model.layers.{i}.post_attention_layernorm",
        "blocks.{i}.feed_forward.gate": "model.layers.{i}.mlp.gate_proj",
        "blocks.{i}.feed_forward.up": "model.layers.{i}.mlp.up_proj",
        "blocks.{i}.feed_forward.down": "model.layers.{i}.mlp.down_proj",
        "norm": "model.norm",
        "head": "lm_head",
        "classifier": "score",
    },
    fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
           "attention_dropout": 0.0, "pretraining_tp": 1},
    defaults={"tie_word_embeddings": False, "num_key_value_heads": None},
    special=("head_dim", "rope_theta", "rope_parameters"),
)  # fmt: skip
T5 = Family(
    "t5", seq2seq.T5, seq2seq.T5Config, ("T5ForConditionalGeneration",),
    fields=(
        ("vocab_size", "vocab_size"),
        ("n_layer", "num_layers"),
        ("n_layer", "num_decoder_layers"),
        ("n_head", "num_heads"),
        ("head_width", "d_kv"),
        ("n_embd", "d_model"),
        ("n_inner", "d_ff"),
        ("norm_eps", "layer_norm_epsilon"),
        ("n_bucket", "relative_attention_num_buckets"),
        ("max_distance", "relative_attention_max_distance"),
        ("start_token_id", "decoder_start_token_id"),
    ),
    weights={
        "embed": "shared",
        "encoder.relative.bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "encoder.blocks.{i}.attention_norm": "encoder.block.{i}.layer.0.layer_norm",
        "encoder.blocks.{i}.attention.q": "encoder.block.{i}.layer.0.SelfAttention.q",
        "encoder.blocks.{i}.attention.k": "encoder.block.{i}.layer.0.SelfAttention.k",
        "encoder.blocks.{i}.attention.v": "encoder.block.{i}.layer.0.SelfAttention.v",
        "encoder.blocks.{i}.attention.out": "encoder.block.{i}.layer.0.SelfAttention.o",
        "encoder.blocks.{i}.feed_forward_norm": "encoder.block.{i}.layer.1.layer_norm",
        "encoder.blocks.{i}.feed_forward.up": "encoder.block.{i}.layer.1.DenseReluDense.wi",
        "encoder.blocks.{i}.feed_forward.down": "encoder.block.{i}.layer.1.DenseReluDense.wo",
        "encoder.norm": "encoder.final_layer_norm",
        "decoder.relative.bias": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "decoder.blocks.{i}.attention_norm": "decoder.block.{i}.layer.0.layer_norm",
        "decoder.blocks.{i}.attention.q": "decoder.block.{i}.layer.0.SelfAttention.q",
        "decoder.blocks.{i}.attention.k": "decoder.block.{i}.layer.0.SelfAttention.k",
        "decoder.blocks.{i}.attention.v": "decoder.block.{i}.layer.0.SelfAttention.v",
        "decoder.blocks.{i}.attention.out": "decoder.block.{i}.layer.0.SelfAttention.o",
        "decoder.blocks.{i}.cross_attention_norm": "decoder.block.{i}.layer.1.layer_norm",
        "decoder.blocks.{i}.cross_attention.q": "decoder.block.{i}.layer.1.EncDecAttention.q",
        "decoder.blocks.{i}.cross_attention.k": "decoder.block.{i}.layer.1.EncDecAttention.k",
        "decoder.blocks.{i}.cross_attention.v": "decoder.block.{i}.layer.1.EncDecAttention.v",
        "decoder.blocks.{i}.cross_attention.out": "decoder.block.{i}.layer.1.EncDecAttention.o",
        "decoder.blocks.{i}.feed_forward_norm": "decoder.block.{i}.layer.2.layer_norm",
        "decoder.blocks.{i}.feed_forward.up": "decoder.block.{i}.layer.2.DenseReluDense.wi",
        "decoder.blocks.{i}.feed_forward.down": "decoder.block.{i}.layer.2.DenseReluDense.wo",
        "decoder.norm": "decoder.final_layer_norm",
        "head": "lm_head",
    },
    gated={
        "encoder.blocks.{i}.feed_forward.gate": "encoder.block.{i}.layer.1.DenseReluDense.wi_0",
        "encoder.blocks.{i}.feed_forward.up": "encoder.block.{i}.layer.1.DenseReluDense.wi_1",
        "decoder.blocks.{i}.feed_forward.gate": "decoder.block.{i}.layer.2.DenseReluDense.wi_0",
        "decoder.blocks.{i}.feed_forward.up": "decoder.block.{i}.layer.2.DenseReluDense.wi_1",
    },
    fixed={"is_encoder_decoder": True},
    defaults={"relative_attention_max_distance": 128, "decoder_start_token_id": None},
    special=("n_positions", "feed_forward_proj", "dense_act_fn", "is_gated_act",
             "tie_word_embeddings", "scale_decoder_outputs"),
    copies={"encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight"},
)  # fmt: skip
BART_HALF = {
    "positions": "embed_positions",
    "embed_norm": "layernorm_embedding",
    "blocks.{i}.attention.q": "layers.{i}.self_attn.q_proj",
    "blocks.{i}.attention.k": "layers.{i}.self_attn.k_proj",
    "blocks.{i}.attention.v": "layers.{i}.self_attn.v_proj",
    "blocks.{i}.attention.out": "layers.{i}.self_attn.out_proj",
    "blocks.{i}.attention_norm": "layers.{i}.self_attn_layer_norm",
    "blocks.{i}.cross_attention.q": "layers.{i}.encoder_attn.q_proj",  # the decoder's alone
    "blocks.{i}.cross_attention.k": "layers.{i}.encoder_attn.k_proj",
    "blocks.{i}.cross_attention.v": "layers.{i}.encoder_attn.v_proj",
    "blocks.{i}.cross_attention.out": "layers.{i}.encoder_attn.out_proj",
    "blocks.{i}.cross_attention_norm": "layers.{i}.encoder_attn_layer_norm",
    "blocks.{i}.feed_forward.up": "layers.{i}.fc1",
    "blocks.{i}.feed_forward.down": "layers.{i}.fc2",
    "blocks.{i}.feed_forward_norm": "layers.{i}.final_layer_norm",
}
"""BART's encoder and decoder call their parts alike."""
BART = Family(
    "bart", seq2seq.BART, seq2seq.BARTConfig, ("BartForConditionalGeneration",),
    fields=(
        ("vocab_size", "vocab_size"),
        ("n_embd", "d_model"),
        ("block_size", "max_position_embeddings"),
        ("n_layer", "encoder_layers"),
        ("n_head", "encoder_attention_heads"),
        ("n_inner", "encoder_ffn_dim"),
        ("n_layer", "decoder_layers"),
        ("n_head", "decoder_attention_heads"),
        ("n_inner", "decoder_ffn_dim"),
        ("n_layer", "num_hidden_layers"),
        ("scale_embeddings", "scale_embedding"),
        ("start_token_id", "decoder_start_token_id"),
    ),
    weights={
        "embed": "model.shared",
        **{f"encoder.{ours}": f"model.encoder.{theirs}" for ours, theirs in BART_HALF.items()},
        **{f"decoder.{ours}": f"model.decoder.{theirs}" for ours, theirs in BART_HALF.items()},
        "head": "lm_head",
        "logits_bias": "final_logits_bias",
    },
    fixed={"activation_function": "gelu", "tie_word_embeddings": True, "is_encoder_decoder": True},
    defaults={"scale_embedding": False, "decoder_start_token_id": 2},
    copies={"model.encoder.embed_tokens.weight": "model.shared.weight",
            "model.decoder.embed_tokens.weight": "model.shared.weight"},
)  # fmt: skip

UNUSED = re.compile(
    r"\bembeddings\.position_ids$|\.attn\.(masked_)?bias$|\bpooler\.|^cls\.seq_relationship\."
)
"""Weights that files hold and a model may do without: buffers, and heads for other tasks."""

FAMILIES = {family.kind: family for family in (BERT, ROBERTA, GPT2, BLOOM, LLAMA, T5, BART)}
"""transformers' ``model_type`` -> the family."""

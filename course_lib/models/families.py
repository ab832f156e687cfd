"""What transformers calls the parts: one table of config fields and one of weights for each family.

A table is read as pairs, transformers' name and ours. ``*`` stands for the number of the layer.
Braces stand for as many pairs as they have entries: ``{q,k}_proj {q,k}`` is ``q_proj q`` and
``k_proj k``. ``qkv`` is one matrix that we hold as three. A dash marks what has no part here:
buffers, and heads for other tasks.
"""

import re
from dataclasses import dataclass, field

from course_lib.models import decoder, encoder, seq2seq

WITHOUT_EFFECT = set("""
    architectures transformers_version _name_or_path dtype torch_dtype return_dict output_attentions
    output_hidden_states output_past use_cache chunk_size_feed_forward is_encoder_decoder prefix
    problem_type id2label label2id num_labels _num_labels bos_token_id eos_token_id pad_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id unk_token_id initializer_range
    initializer_factor init_std gradient_checkpointing _attn_implementation_autoset
    transformers.js_config task_specific_params finetuning_task classifier_dropout classif_dropout
    early_stopping num_beams max_length min_length length_penalty no_repeat_ngram_size
""".split())  # fmt: skip
"""Fields of any family that change no logits, or (labels, tokens) are read on their own."""


@dataclass
class Family:
    """One family's classes on both sides of the border, and the names they use."""

    model: type
    config: type
    classes: tuple[str, ...]  # transformers' language model, and its classifier if we have one
    fields: str  # of the config
    body: str  # weights of every model
    plain: str = ""  # more weights where the config's field ``variant`` is not set ...
    other: str = ""  # ... and where it is
    variant: str = "n_label"
    required: dict = field(default_factory=dict)  # fields that may have one of these values only
    same: str = ""  # fields that must have another's value
    defaults: dict = field(default_factory=dict)  # of fields that files leave out
    ignored: str = ""  # more fields without effect, dropout above all
    repeats: str = ""  # weights that hold a second copy of another
    fused: int | None = None  # the axis of q, k, v in qkv: 0 is (3, H, D), 1 is (H, 3, D)
    transposed: bool = False  # the matrices of the blocks are stored (in, out)

    def weight_names(self, config) -> dict[str, str]:
        """Names of modules or weights: transformers' to ours."""
        variant = self.other if getattr(config, self.variant, None) else self.plain
        return {a: b for row in pairs(f"{self.body} {variant}").items() for a, b in _expand(*row)}


def pairs(table: str) -> dict[str, str]:
    """A table as a dict: ``"a b c d"`` is {a: b, c: d}."""
    words = table.split()
    return dict(zip(words[::2], words[1::2], strict=True))


def _expand(theirs: str, ours: str) -> list[tuple[str, str]]:
    """All pairs that a pair with braces stands for.

    Example:
        >>> _expand("ln_{1,2}.{a,b}", "norm{1,2}.{x,y}")[:2]
        [('ln_1.a', 'norm1.x'), ('ln_1.b', 'norm1.y')]
    """
    left, right = re.search(r"\{(.*?)\}", theirs), re.search(r"\{(.*?)\}", ours)
    if left is None:
        return [(theirs, ours)]
    choices = left[1].split(","), right[1].split(",")
    filled = [
        (theirs.replace(left[0], a, 1), ours.replace(right[0], b, 1))
        for a, b in zip(*choices, strict=True)
    ]
    return [pair for row in filled for pair in _expand(*row)]


ENCODER_FIELDS = """
    vocab_size vocab_size                      num_hidden_layers n_layer
    num_attention_heads n_head                 hidden_size n_embd
    intermediate_size n_inner                  max_position_embeddings block_size
    type_vocab_size n_token_type               layer_norm_eps norm_eps
    tie_word_embeddings tie_embeddings
"""
ENCODER_BODY = """
    BODY.embeddings.{word,position,token_type}_embeddings  {embed,positions,token_types}
    BODY.embeddings.LayerNorm                              embed_norm
    BODY.embeddings.position_ids                           -
    BODY.encoder.layer.*.attention.self.{query,key,value}  blocks.*.attention.{q,k,v}
    BODY.encoder.layer.*.attention.output.dense            blocks.*.attention.out
    BODY.encoder.layer.*.attention.output.LayerNorm        blocks.*.attention_norm
    BODY.encoder.layer.*.intermediate.dense                blocks.*.feed_forward.up
    BODY.encoder.layer.*.output.dense                      blocks.*.feed_forward.down
    BODY.encoder.layer.*.output.LayerNorm                  blocks.*.feed_forward_norm
"""
ENCODER = {
    "required": {
        "hidden_act": ("gelu",), "is_decoder": (False,), "add_cross_attention": (False,),
        "position_embedding_type": ("absolute",),
    },
    "defaults": {"tie_word_embeddings": True, "layer_norm_eps": 1e-12, "type_vocab_size": 2},
    "ignored": "hidden_dropout_prob attention_probs_dropout_prob",
}  # fmt: skip
"""BERT and RoBERTa differ in the names of their heads alone."""

BERT = Family(
    encoder.BERT, encoder.BERTConfig, ("BertForMaskedLM", "BertForSequenceClassification"),
    fields=ENCODER_FIELDS,
    body=ENCODER_BODY.replace("BODY", "bert"),
    plain="""
        cls.predictions.transform.{dense,LayerNorm}  {transform,transform_norm}
        cls.predictions.decoder                      head
        cls.predictions.decoder.bias                 head_bias
        bert.pooler.dense                            -
        cls.seq_relationship                         -
    """,
    other="bert.pooler.dense transform  classifier classifier",
    repeats="cls.predictions.bias cls.predictions.decoder.bias",
    **ENCODER,
)  # fmt: skip

ROBERTA = Family(
    encoder.RoBERTa, encoder.RoBERTaConfig,
    ("RobertaForMaskedLM", "RobertaForSequenceClassification"),
    fields=ENCODER_FIELDS + "pad_token_id pad_token_id",
    body=ENCODER_BODY.replace("BODY", "roberta") + "roberta.pooler.dense -",
    plain="""
        lm_head.{dense,layer_norm}  {transform,transform_norm}
        lm_head.decoder             head
        lm_head.decoder.bias        head_bias
    """,
    other="classifier.{dense,out_proj} {transform,classifier}",
    repeats="lm_head.bias lm_head.decoder.bias",
    **ENCODER,
)  # fmt: skip

GPT2 = Family(
    decoder.GPT2, decoder.GPT2Config, ("GPT2LMHeadModel", "GPT2ForSequenceClassification"),
    fields="""
        vocab_size vocab_size          n_layer n_layer
        n_head n_head                  n_embd n_embd
        n_positions block_size         n_inner n_inner
        layer_norm_epsilon norm_eps    tie_word_embeddings tie_embeddings
    """,
    body="""
        transformer.{wte,wpe,ln_f}               {embed,positions,norm}
        transformer.h.*.attn.{bias,masked_bias}  {-,-}
        transformer.h.*.attn.c_attn              blocks.*.attention.qkv
        transformer.h.*.attn.c_proj              blocks.*.attention.out
        transformer.h.*.mlp.{c_fc,c_proj}        blocks.*.feed_forward.{up,down}
        transformer.h.*.{ln_1,ln_2}              blocks.*.{attention_norm,feed_forward_norm}
    """,
    plain="lm_head head",
    other="score classifier",
    required={
        "activation_function": ("gelu_new",), "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,),
    },
    defaults={"tie_word_embeddings": True, "n_inner": None},
    ignored="resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj summary_activation "
            "summary_proj_to_labels summary_first_dropout n_ctx",
    fused=0,
    transposed=True,
)  # fmt: skip

BLOOM = Family(
    decoder.BLOOM, decoder.BLOOMConfig, ("BloomForCausalLM",),
    fields="""
        vocab_size vocab_size            n_layer n_layer
        n_head n_head                    hidden_size n_embd
        layer_norm_epsilon norm_eps      tie_word_embeddings tie_embeddings
    """,
    body="""
        transformer.{word_embeddings,word_embeddings_layernorm,ln_f}  {embed,embed_norm,norm}
        transformer.h.*.self_attention.query_key_value    blocks.*.attention.qkv
        transformer.h.*.self_attention.dense              blocks.*.attention.out
        transformer.h.*.mlp.{dense_h_to_4h,dense_4h_to_h}  blocks.*.feed_forward.{up,down}
        transformer.h.*.{input,post_attention}_layernorm  blocks.*.{attention,feed_forward}_norm
        lm_head                                           head
    """,
    required={
        "apply_residual_connection_post_layernorm": (False,), "slow_but_exact": (False,),
        "n_inner": (None,),
    },
    defaults={"tie_word_embeddings": True},
    ignored="hidden_dropout attention_dropout pretraining_tp attention_softmax_in_fp32 "
            "bias_dropout_fusion masked_softmax_fusion offset_alibi seq_length skip_bias_add "
            "skip_bias_add_qkv",
    fused=1,
)  # fmt: skip

LLAMA = Family(
    decoder.Llama, decoder.LlamaConfig, ("LlamaForCausalLM", "LlamaForSequenceClassification"),
    fields="""
        vocab_size vocab_size                  num_hidden_layers n_layer
        num_attention_heads n_head             num_key_value_heads n_kv_head
        hidden_size n_embd                     intermediate_size n_inner
        max_position_embeddings block_size     rms_norm_eps norm_eps
        tie_word_embeddings tie_embeddings
    """,
    body="""
        model.{embed_tokens,norm}                {embed,norm}
        model.layers.*.self_attn.{q,k,v,o}_proj  blocks.*.attention.{q,k,v,out}
        model.layers.*.mlp.{gate,up,down}_proj   blocks.*.feed_forward.{gate,up,down}
        model.layers.*.{input,post_attention}_layernorm  blocks.*.{attention,feed_forward}_norm
    """,
    plain="lm_head head",
    other="score classifier",
    required={
        "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,),
        "attention_dropout": (0, 0.0), "rope_scaling": (None,), "pretraining_tp": (1,),
        "rope_interleaved": (False,),
    },
    defaults={"tie_word_embeddings": False},
    ignored="head_dim rope_theta rope_parameters is_llama_config",
)  # fmt: skip

T5 = Family(
    seq2seq.T5, seq2seq.T5Config, ("T5ForConditionalGeneration",),
    fields="""
        vocab_size vocab_size                  num_layers n_layer
        num_heads n_head                       d_kv head_width
        d_model n_embd                         d_ff n_inner
        relative_attention_num_buckets n_bucket
        relative_attention_max_distance max_distance
        layer_norm_epsilon norm_eps            decoder_start_token_id start_token_id
    """,
    body="""
        shared                                     embed
        lm_head                                    head
        {en,de}coder.block.0.layer.0.SelfAttention.relative_attention_bias
            {en,de}coder.relative.bias
        {en,de}coder.block.*.layer.0.SelfAttention.{q,k,v,o}
            {en,de}coder.blocks.*.attention.{q,k,v,out}
        {en,de}coder.block.*.layer.0.layer_norm    {en,de}coder.blocks.*.attention_norm
        decoder.block.*.layer.1.EncDecAttention.{q,k,v,o}
            decoder.blocks.*.cross_attention.{q,k,v,out}
        decoder.block.*.layer.1.layer_norm         decoder.blocks.*.cross_attention_norm
        encoder.block.*.layer.1.layer_norm         encoder.blocks.*.feed_forward_norm
        decoder.block.*.layer.2.layer_norm         decoder.blocks.*.feed_forward_norm
        {en,de}coder.final_layer_norm              {en,de}coder.norm
    """,
    plain="""
        encoder.block.*.layer.1.DenseReluDense.{wi,wo}  encoder.blocks.*.feed_forward.{up,down}
        decoder.block.*.layer.2.DenseReluDense.{wi,wo}  decoder.blocks.*.feed_forward.{up,down}
    """,
    other="""
        encoder.block.*.layer.1.DenseReluDense.{wi_0,wi_1,wo}
            encoder.blocks.*.feed_forward.{gate,up,down}
        decoder.block.*.layer.2.DenseReluDense.{wi_0,wi_1,wo}
            decoder.blocks.*.feed_forward.{gate,up,down}
    """,
    variant="gated",
    required={"is_encoder_decoder": (True,), "is_decoder": (False,)},
    same="num_decoder_layers num_layers",
    defaults={"relative_attention_max_distance": 128},
    ignored="dropout_rate n_positions feed_forward_proj dense_act_fn is_gated_act "
            "tie_word_embeddings scale_decoder_outputs",
    repeats="encoder.embed_tokens.weight shared.weight decoder.embed_tokens.weight shared.weight",
)  # fmt: skip

BART = Family(
    seq2seq.BART, seq2seq.BARTConfig, ("BartForConditionalGeneration",),
    fields="""
        vocab_size vocab_size                  encoder_layers n_layer
        encoder_attention_heads n_head         encoder_ffn_dim n_inner
        d_model n_embd                         max_position_embeddings block_size
        scale_embedding scale_embeddings       decoder_start_token_id start_token_id
    """,
    body="""
        model.shared                                      embed
        final_logits_bias                                 logits_bias
        model.{en,de}coder.embed_positions                {en,de}coder.positions
        model.{en,de}coder.layernorm_embedding            {en,de}coder.embed_norm
        model.{en,de}coder.layers.*.self_attn.{q_proj,k_proj,v_proj,out_proj}
            {en,de}coder.blocks.*.attention.{q,k,v,out}
        model.{en,de}coder.layers.*.self_attn_layer_norm  {en,de}coder.blocks.*.attention_norm
        model.decoder.layers.*.encoder_attn.{q_proj,k_proj,v_proj,out_proj}
            decoder.blocks.*.cross_attention.{q,k,v,out}
        model.decoder.layers.*.encoder_attn_layer_norm    decoder.blocks.*.cross_attention_norm
        model.{en,de}coder.layers.*.{fc1,fc2}
            {en,de}coder.blocks.*.feed_forward.{up,down}
        model.{en,de}coder.layers.*.final_layer_norm      {en,de}coder.blocks.*.feed_forward_norm
    """,
    required={
        "activation_function": ("gelu",), "tie_word_embeddings": (True,), "is_decoder": (False,),
        "is_encoder_decoder": (True,), "static_position_embeddings": (False,),
        "normalize_before": (False,), "add_final_layer_norm": (False,),
        "add_bias_logits": (False,), "normalize_embedding": (True,),
    },
    same="decoder_layers encoder_layers num_hidden_layers encoder_layers "
         "decoder_attention_heads encoder_attention_heads decoder_ffn_dim encoder_ffn_dim",
    defaults={"scale_embedding": False, "decoder_start_token_id": 2},
    ignored="dropout attention_dropout activation_dropout encoder_layerdrop decoder_layerdrop "
            "extra_pos_embeddings",
    repeats="model.encoder.embed_tokens.weight model.shared.weight "
            "model.decoder.embed_tokens.weight model.shared.weight "
            "lm_head.weight model.shared.weight",
)  # fmt: skip

FAMILIES = {
    "bert": BERT, "roberta": ROBERTA, "gpt2": GPT2, "bloom": BLOOM, "llama": LLAMA, "t5": T5,
    "bart": BART,
}  # fmt: skip
"""transformers' ``model_type`` -> the family."""

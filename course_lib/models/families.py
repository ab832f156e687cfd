"""What transformers calls the parts: the config fields and the weights of each family.

A table is read as pairs, transformers' name and ours. Braces stand for as many pairs as they have
entries: ``{q,k}_proj {q,k}`` is ``q_proj q`` and ``k_proj k``. ``*`` stands for the number of the
layer, ``@`` for encoder and decoder. ``qkv`` is one matrix that we hold as three.
"""

import re
from dataclasses import dataclass, field
from itertools import product

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

WITHOUT_EFFECT = set("""
    model_type architectures transformers_version _name_or_path dtype torch_dtype return_dict
    output_attentions output_hidden_states output_past use_cache chunk_size_feed_forward
    is_encoder_decoder prefix problem_type id2label label2id num_labels _num_labels bos_token_id
    eos_token_id pad_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id
    unk_token_id initializer_range initializer_factor init_std gradient_checkpointing
    _attn_implementation_autoset transformers.js_config task_specific_params finetuning_task
    early_stopping num_beams max_length min_length length_penalty no_repeat_ngram_size

    classifier_dropout classif_dropout hidden_dropout_prob attention_probs_dropout_prob resid_pdrop
    embd_pdrop attn_pdrop hidden_dropout attention_dropout activation_dropout dropout dropout_rate
    encoder_layerdrop decoder_layerdrop summary_first_dropout bias_dropout_fusion

    summary_type summary_use_proj summary_activation summary_proj_to_labels n_ctx seq_length
    attention_softmax_in_fp32 masked_softmax_fusion offset_alibi skip_bias_add skip_bias_add_qkv
    is_llama_config extra_pos_embeddings
""".split())  # fmt: skip
"""Fields that change no logits, or (labels, tokens) are read on their own. Three groups: those of
every family, dropout's, those of a single family."""


@dataclass
class Family:
    """One family's classes on both sides of the border, and the names they use."""

    kind: str  # transformers' ``model_type``
    model: type
    config: type
    classes: tuple[str, ...]  # transformers' language model, and its classifier if we have one
    fields: str  # of the config; where two are one here they must agree
    weights: str
    fixed: dict = field(default_factory=dict)  # more fields that may have this value only
    defaults: dict = field(default_factory=dict)  # of fields that files may leave out
    special: str = ""  # fields that ``weights`` reads on its own
    repeats: str = ""  # weights that hold a second copy of another
    fused: int | None = None  # the axis of q, k, v in qkv: 0 is (3, H, D), 1 is (H, 3, D)
    transposed: bool = False  # the matrices of the blocks are stored (in, out)

    def names(self, config) -> dict[str, str]:
        """Names of modules or weights, layer by layer: ours to transformers'."""
        table = [(ours, theirs) for theirs, ours in pairs(self.weights).items()]
        if getattr(config, "gated", False):  # T5 numbers its matrices then
            table = [(ours, re.sub(r"\.wi$", ".wi_1", theirs)) for ours, theirs in table]
        layers = range(config.n_layer)
        return {a.replace("*", str(i)): b.replace("*", str(i)) for a, b in table for i in layers}


def pairs(table: str) -> dict[str, str]:
    """A table as a dict.

    Example:
        >>> pairs("ln_{1,2}.{a,b} {x,y}.{c,d}")
        {'ln_1.a': 'x.c', 'ln_1.b': 'x.d', 'ln_2.a': 'y.c', 'ln_2.b': 'y.d'}
    """
    words = [_expand(word) for word in table.replace("@", "{encoder,decoder}").split()]
    return {
        a: b
        for theirs, ours in zip(words[::2], words[1::2], strict=True)
        for a, b in zip(theirs, ours, strict=True)
    }


def _expand(word: str) -> list[str]:
    """All words that a word with braces stands for."""
    choices = [part.split(",") for part in re.split("[{}]", word)]
    return ["".join(choice) for choice in product(*choices)]


ENCODER = {
    "fields": """
        {vocab_size,num_hidden_layers,num_attention_heads}       {vocab_size,n_layer,n_head}
        {hidden_size,intermediate_size,max_position_embeddings}  {n_embd,n_inner,block_size}
        {type_vocab_size,layer_norm_eps}                         {n_token_type,norm_eps}
        tie_word_embeddings                                      tie_embeddings
    """,
    "weights": """
        BODY.embeddings.{word,position,token_type}_embeddings  {embed,positions,token_types}
        BODY.embeddings.LayerNorm                              embed_norm
        BODY.encoder.layer.*.attention.self.{query,key,value}  blocks.*.attention.{q,k,v}
        BODY.encoder.layer.*.attention.output.dense            blocks.*.attention.out
        BODY.encoder.layer.*.attention.output.LayerNorm        blocks.*.attention_norm
        BODY.encoder.layer.*.{intermediate,output}.dense       blocks.*.feed_forward.{up,down}
        BODY.encoder.layer.*.output.LayerNorm                  blocks.*.feed_forward_norm
    """,
}
BERT = Family(
    "bert", encoder.BERT, encoder.BERTConfig, ("BertForMaskedLM", "BertForSequenceClassification"),
    fields=ENCODER["fields"],
    weights=ENCODER["weights"].replace("BODY", "bert") + """
        cls.predictions.transform.{dense,LayerNorm}  {transform,transform_norm}
        cls.predictions.{decoder,decoder.bias}       {head,head_bias}
        {bert.pooler.dense,classifier}               {pooler,classifier}
    """,
    fixed={"hidden_act": "gelu"},
    defaults={"tie_word_embeddings": True, "layer_norm_eps": 1e-12, "type_vocab_size": 2},
    repeats="cls.predictions.bias cls.predictions.decoder.bias",
)  # fmt: skip
ROBERTA = Family(
    "roberta", encoder.RoBERTa, encoder.RoBERTaConfig,
    ("RobertaForMaskedLM", "RobertaForSequenceClassification"),
    fields=ENCODER["fields"] + "pad_token_id pad_token_id",
    weights=ENCODER["weights"].replace("BODY", "roberta") + """
        lm_head.{dense,layer_norm,decoder,decoder.bias}  {transform,transform_norm,head,head_bias}
        classifier.{dense,out_proj}                      {pooler,classifier}
    """,
    fixed={"hidden_act": "gelu"},
    defaults=BERT.defaults,
    repeats="lm_head.bias lm_head.decoder.bias",
)  # fmt: skip
GPT2 = Family(
    "gpt2", decoder.GPT2, decoder.GPT2Config, ("GPT2LMHeadModel", "GPT2ForSequenceClassification"),
    fields="""
        {vocab_size,n_layer,n_head,n_embd}    {vocab_size,n_layer,n_head,n_embd}
        {n_inner,n_positions}                 {n_inner,block_size}
        {layer_norm_epsilon,tie_word_embeddings}  {norm_eps,tie_embeddings}
    """,
    weights="""
        transformer.{wte,wpe,ln_f}            {embed,positions,norm}
        transformer.h.*.attn.{c_attn,c_proj}  blocks.*.attention.{qkv,out}
        transformer.h.*.mlp.{c_fc,c_proj}     blocks.*.feed_forward.{up,down}
        transformer.h.*.{ln_1,ln_2}           blocks.*.{attention_norm,feed_forward_norm}
        {lm_head,score}                       {head,classifier}
    """,
    fixed={"activation_function": "gelu_new"},
    defaults={"tie_word_embeddings": True, "n_inner": None},
    fused=0,
    transposed=True,
)  # fmt: skip
BLOOM = Family(
    "bloom", decoder.BLOOM, decoder.BLOOMConfig, ("BloomForCausalLM",),
    fields="""
        {vocab_size,n_layer,n_head,hidden_size}   {vocab_size,n_layer,n_head,n_embd}
        {layer_norm_epsilon,tie_word_embeddings}  {norm_eps,tie_embeddings}
    """,
    weights="""
        transformer.{word_embeddings,word_embeddings_layernorm}  {embed,embed_norm}
        transformer.h.*.self_attention.{query_key_value,dense}   blocks.*.attention.{qkv,out}
        transformer.h.*.mlp.{dense_h_to_4h,dense_4h_to_h}        blocks.*.feed_forward.{up,down}
        transformer.h.*.{input,post_attention}_layernorm  blocks.*.{attention,feed_forward}_norm
        {transformer.ln_f,lm_head}                               {norm,head}
    """,
    fixed={"n_inner": None},
    defaults={"tie_word_embeddings": True},
    special="pretraining_tp",
    fused=1,
)  # fmt: skip
LLAMA = Family(
    "llama", decoder.Llama, decoder.LlamaConfig,
    ("LlamaForCausalLM", "LlamaForSequenceClassification"),
    fields="""
        {vocab_size,num_hidden_layers,num_attention_heads}   {vocab_size,n_layer,n_head}
        {num_key_value_heads,hidden_size,intermediate_size}  {n_kv_head,n_embd,n_inner}
        {max_position_embeddings,rms_norm_eps}               {block_size,norm_eps}
        tie_word_embeddings                                  tie_embeddings
    """,
    weights="""
        model.{embed_tokens,norm}                {embed,norm}
        model.layers.*.self_attn.{q,k,v,o}_proj  blocks.*.attention.{q,k,v,out}
        model.layers.*.mlp.{gate,up,down}_proj   blocks.*.feed_forward.{gate,up,down}
        model.layers.*.{input,post_attention}_layernorm  blocks.*.{attention,feed_forward}_norm
        {lm_head,score}                          {head,classifier}
    """,
    fixed={
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
        "pretraining_tp": 1,
    },
    defaults={"tie_word_embeddings": False, "num_key_value_heads": None},
    special="head_dim rope_theta rope_parameters",
)  # fmt: skip
T5 = Family(
    "t5", seq2seq.T5, seq2seq.T5Config, ("T5ForConditionalGeneration",),
    fields="""
        {vocab_size,num_layers,num_heads,d_model}      {vocab_size,n_layer,n_head,n_embd}
        {d_kv,d_ff,layer_norm_epsilon}                 {head_width,n_inner,norm_eps}
        relative_attention_{num_buckets,max_distance}  {n_bucket,max_distance}
        {num_decoder_layers,decoder_start_token_id}    {n_layer,start_token_id}
    """,
    weights="""
        {shared,lm_head}                                     {embed,head}
        @.block.0.layer.0.SelfAttention.relative_attention_bias  @.relative.bias
        @.block.*.layer.0.SelfAttention.{q,k,v,o}            @.blocks.*.attention.{q,k,v,out}
        @.block.*.layer.0.layer_norm                         @.blocks.*.attention_norm
        @.block.*.layer.1.EncDecAttention.{q,k,v,o}          @.blocks.*.cross_attention.{q,k,v,out}
        decoder.block.*.layer.1.layer_norm                   decoder.blocks.*.cross_attention_norm
        encoder.block.*.layer.1.DenseReluDense.{wi_0,wi,wo}
            encoder.blocks.*.feed_forward.{gate,up,down}
        decoder.block.*.layer.2.DenseReluDense.{wi_0,wi,wo}
            decoder.blocks.*.feed_forward.{gate,up,down}
        encoder.block.*.layer.1.layer_norm                   encoder.blocks.*.feed_forward_norm
        decoder.block.*.layer.2.layer_norm                   decoder.blocks.*.feed_forward_norm
        @.final_layer_norm                                   @.norm
    """,
    fixed={"is_encoder_decoder": True},
    defaults={"relative_attention_max_distance": 128, "decoder_start_token_id": None},
    special="n_positions feed_forward_proj dense_act_fn is_gated_act tie_word_embeddings "
            "scale_decoder_outputs",
    repeats="@.embed_tokens.weight {shared,shared}.weight",
)  # fmt: skip
BART = Family(
    "bart", seq2seq.BART, seq2seq.BARTConfig, ("BartForConditionalGeneration",),
    fields="""
        {vocab_size,d_model,max_position_embeddings}  {vocab_size,n_embd,block_size}
        encoder_{layers,attention_heads,ffn_dim}      {n_layer,n_head,n_inner}
        decoder_{layers,attention_heads,ffn_dim}      {n_layer,n_head,n_inner}
        num_hidden_layers                             n_layer
        {scale_embedding,decoder_start_token_id}      {scale_embeddings,start_token_id}
    """,
    weights="""
        {model.shared,final_logits_bias}                    {embed,logits_bias}
        model.@.{embed_positions,layernorm_embedding}       @.{positions,embed_norm}
        model.@.layers.*.self_attn.{q,k,v,out}_proj         @.blocks.*.attention.{q,k,v,out}
        model.@.layers.*.self_attn_layer_norm               @.blocks.*.attention_norm
        model.@.layers.*.encoder_attn.{q,k,v,out}_proj      @.blocks.*.cross_attention.{q,k,v,out}
        model.@.layers.*.encoder_attn_layer_norm            @.blocks.*.cross_attention_norm
        model.@.layers.*.{fc1,fc2}                          @.blocks.*.feed_forward.{up,down}
        model.@.layers.*.final_layer_norm                   @.blocks.*.feed_forward_norm
    """,
    fixed={
        "activation_function": "gelu", "tie_word_embeddings": True, "is_encoder_decoder": True,
    },
    defaults={"scale_embedding": False, "decoder_start_token_id": 2},
    repeats="model.@.embed_tokens.weight model.{shared,shared}.weight "
            "lm_head.weight model.shared.weight",
)  # fmt: skip

UNUSED = re.compile(
    r"\bembeddings\.position_ids$|\.attn\.(masked_)?bias$|\bpooler\.|^cls\.seq_relationship\."
)
"""Weights that files hold and a model may do without: buffers, and heads for other tasks."""

FAMILIES = {family.kind: family for family in (BERT, ROBERTA, GPT2, BLOOM, LLAMA, T5, BART)}
"""transformers' ``model_type`` -> the family."""

"""What transformers calls the parts: the config fields and the weights of each family.

A table is a row of words, each ``ours=theirs`` or a name that both sides use. Braces stand for as
many words as they have entries (one name on the right serves for all): ``{q,k}={q,k}_proj`` is
``q=q_proj k=k_proj``. ``weights`` renames what stands between the dots of a name: with these two
and ``blocks=model.layers``, ``blocks.0.q.weight`` is ``model.layers.0.q_proj.weight``. A part that
becomes nothing (``feed_forward=``) is left out.
"""

import re
from dataclasses import dataclass, field, replace
from functools import cache
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
"""Fields that change no logits, or (labels, tokens) are read on their own: those of every family,
then dropout's, then those of a single family."""


@dataclass
class Family:
    """One family's classes on both sides of the border, and the names they use."""

    kind: str  # transformers' ``model_type``
    model: type
    config: type
    classes: tuple[str, ...]  # transformers' language model, and its classifier if we have one
    fields: str  # of the config; fields over there that are one here must agree
    weights: str  # ``encoder:`` before a name: in that half only
    fixed: dict = field(default_factory=dict)  # more fields that may have this value only
    defaults: dict = field(default_factory=dict)  # of fields that files may leave out
    special: str = ""  # fields that ``weights.py`` reads on its own
    copies: str = ""  # their weights that hold a second copy of another: copy=original
    fused: int | None = None  # the axis of q, k, v in one matrix: 0 is (3, H, D), 1 is (H, 3, D)
    transposed: bool = False  # the matrices of the blocks are stored (in, out)

    def name(self, ours: str) -> str:
        """transformers' name of the weight that we call ``ours``."""
        table, parts = dict(pairs(self.weights)), ours.split(".")
        theirs = (table.get(f"{parts[0]}:{part}", table.get(part, part)) for part in parts)
        return ".".join(filter(None, theirs))


@cache
def pairs(table: str) -> tuple[tuple[str, str], ...]:
    """A table's words, each as two names.

    Example:
        >>> pairs("bias {up,down}=fc{1,2} {q,k}=qkv")
        (('bias', 'bias'), ('up', 'fc1'), ('down', 'fc2'), ('q', 'qkv'), ('k', 'qkv'))
    """
    found = []
    for word in table.split():
        left, equals, right = word.partition("=")
        ours, theirs = _expand(left), _expand(right if equals else left)
        found += zip(ours, theirs * len(ours) if len(theirs) == 1 else theirs, strict=True)
    return tuple(found)


def _expand(word: str) -> list[str]:
    """All words that a word with braces stands for."""
    choices = [part.split(",") for part in re.split("[{}]", word)]
    return ["".join(choice) for choice in product(*choices)]


BERT = Family(
    "bert", encoder.BERT, encoder.BERTConfig, ("BertForMaskedLM", "BertForSequenceClassification"),
    fields="""vocab_size {n_layer,n_head}=num_{hidden_layers,attention_heads} n_embd=hidden_size
        n_inner=intermediate_size block_size=max_position_embeddings n_token_type=type_vocab_size
        norm_eps=layer_norm_eps tie_embeddings=tie_word_embeddings""",
    weights="""{embed,positions,token_types}=bert.embeddings.{word,position,token_type}_embeddings
        embed_norm=bert.embeddings.LayerNorm blocks=bert.encoder.layer
        {q,k,v}=self.{query,key,value} out=output.dense attention_norm=attention.output.LayerNorm
        feed_forward= up=intermediate.dense down=output.dense feed_forward_norm=output.LayerNorm
        {transform,transform_norm}=cls.predictions.transform.{dense,LayerNorm}
        {head,head_bias}=cls.predictions.{decoder,decoder.bias} pooler=bert.pooler.dense""",
    fixed={"hidden_act": "gelu"},
    defaults={"layer_norm_eps": 1e-12, "type_vocab_size": 2},
    copies="cls.predictions.bias=cls.predictions.decoder.bias",
)  # fmt: skip
ROBERTA = replace(
    BERT, kind="roberta", model=encoder.RoBERTa, config=encoder.RoBERTaConfig,
    classes=("RobertaForMaskedLM", "RobertaForSequenceClassification"),
    fields=BERT.fields + " pad_token_id",
    weights=BERT.weights.replace("bert.", "roberta.") + """
        {transform,transform_norm,head,head_bias}=lm_head.{dense,layer_norm,decoder,decoder.bias}
        {pooler,classifier}=classifier.{dense,out_proj}""",
    copies="lm_head.bias=lm_head.decoder.bias",
)  # fmt: skip
GPT2 = Family(
    "gpt2", decoder.GPT2, decoder.GPT2Config, ("GPT2LMHeadModel", "GPT2ForSequenceClassification"),
    fields="""vocab_size n_layer n_head n_embd n_inner block_size=n_positions
        norm_eps=layer_norm_epsilon tie_embeddings=tie_word_embeddings""",
    weights="""{embed,positions,norm,blocks}=transformer.{wte,wpe,ln_f,h}
        attention=attn {q,k,v}=c_attn out=c_proj feed_forward=mlp {up,down}=c_{fc,proj}
        {attention,feed_forward}_norm=ln_{1,2} {head,classifier}={lm_head,score}""",
    fixed={"activation_function": "gelu_new"},
    defaults={"n_inner": None},
    fused=0, transposed=True,
)  # fmt: skip
BLOOM = Family(
    "bloom", decoder.BLOOM, decoder.BLOOMConfig, ("BloomForCausalLM",),
    fields="""vocab_size n_layer n_head n_embd=hidden_size norm_eps=layer_norm_epsilon
        tie_embeddings=tie_word_embeddings""",
    weights="""{embed,embed_norm}=transformer.word_embeddings{,_layernorm}
        {norm,blocks}=transformer.{ln_f,h} attention=self_attention {q,k,v}=query_key_value
        out=dense feed_forward=mlp {up,down}=dense_{h_to_4h,4h_to_h}
        {attention,feed_forward}_norm={input,post_attention}_layernorm head=lm_head""",
    fixed={"n_inner": None},
    special="pretraining_tp", fused=1,
)  # fmt: skip
LLAMA = Family(
    "llama", decoder.Llama, decoder.LlamaConfig,
    ("LlamaForCausalLM", "LlamaForSequenceClassification"),
    fields="""vocab_size n_embd=hidden_size
        {n_layer,n_head,n_kv_head}=num_{hidden_layers,attention_heads,key_value_heads}
        n_inner=intermediate_size block_size=max_position_embeddings
        norm_eps=rms_norm_eps tie_embeddings=tie_word_embeddings""",
    weights="""{embed,norm,blocks}=model.{embed_tokens,norm,layers}
        attention=self_attn {q,k,v,out}={q,k,v,o}_proj
        feed_forward=mlp {gate,up,down}={gate,up,down}_proj
        {attention,feed_forward}_norm={input,post_attention}_layernorm
        {head,classifier}={lm_head,score}""",
    fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
           "attention_dropout": 0.0, "pretraining_tp": 1},
    defaults={"tie_word_embeddings": False, "num_key_value_heads": None},
    special="head_dim rope_theta rope_parameters",
)  # fmt: skip
T5 = Family(
    "t5", seq2seq.T5, seq2seq.T5Config, ("T5ForConditionalGeneration",),
    fields="""vocab_size {n_layer,n_layer,n_head}=num_{layers,decoder_layers,heads} head_width=d_kv
        n_embd=d_model n_inner=d_ff norm_eps=layer_norm_epsilon
        {n_bucket,max_distance}=relative_attention_{num_buckets,max_distance}
        start_token_id=decoder_start_token_id""",
    weights="""{embed,head}={shared,lm_head} blocks=block norm=final_layer_norm
        attention=layer.0.SelfAttention cross_attention=layer.1.EncDecAttention out=o
        {attention,cross_attention,feed_forward}_norm=layer.{0,1,2}.layer_norm
        feed_forward=layer.2.DenseReluDense {gate,up,down}={wi_0,wi,wo}
        encoder:feed_forward{,_norm}=layer.1.{DenseReluDense,layer_norm}
        relative=block.0.layer.0.SelfAttention bias=relative_attention_bias""",
    fixed={"is_encoder_decoder": True},
    defaults={"relative_attention_max_distance": 128, "decoder_start_token_id": None},
    special="n_positions feed_forward_proj dense_act_fn is_gated_act tie_word_embeddings "
            "scale_decoder_outputs",
    copies="{en,de}coder.embed_tokens.weight=shared.weight",
)  # fmt: skip
BART = Family(
    "bart", seq2seq.BART, seq2seq.BARTConfig, ("BartForConditionalGeneration",),
    fields="""vocab_size n_embd=d_model block_size=max_position_embeddings
        {n_layer,n_head,n_inner}=encoder_{layers,attention_heads,ffn_dim}
        {n_layer,n_head,n_inner}=decoder_{layers,attention_heads,ffn_dim}
        n_layer=num_hidden_layers scale_embeddings=scale_embedding
        start_token_id=decoder_start_token_id""",
    weights="""{embed,encoder,decoder}=model.{shared,encoder,decoder} head=lm_head
        positions=embed_positions embed_norm=layernorm_embedding blocks=layers
        attention=self_attn cross_attention=encoder_attn {q,k,v,out}={q,k,v,out}_proj
        attention_norm=self_attn_layer_norm cross_attention_norm=encoder_attn_layer_norm
        feed_forward= {up,down}={fc1,fc2} feed_forward_norm=final_layer_norm
        logits_bias=final_logits_bias""",
    fixed={"activation_function": "gelu", "tie_word_embeddings": True, "is_encoder_decoder": True},
    defaults={"scale_embedding": False, "decoder_start_token_id": 2},
    copies="model.{en,de}coder.embed_tokens.weight=model.shared.weight",
)  # fmt: skip

UNUSED = re.compile(
    r"\bembeddings\.position_ids$|\.attn\.(masked_)?bias$|\bpooler\.|^cls\.seq_relationship\."
)
"""Weights that files hold and a model may do without: buffers, and heads for other tasks."""

FAMILIES = {family.kind: family for family in (BERT, ROBERTA, GPT2, BLOOM, LLAMA, T5, BART)}
"""transformers' ``model_type`` -> the family."""

"""The course's models, in plain PyTorch, with transformers' calling convention."""

from course_lib.models.base import Output, mask_inputs, positions_from_mask
from course_lib.models.decoder import BLOOM, GPT2, BLOOMConfig, GPT2Config, Llama, LlamaConfig
from course_lib.models.encoder import BERT, BERTConfig, RoBERTa, RoBERTaConfig
from course_lib.models.heads import ScalarHead, WithScalarHead
from course_lib.models.seq2seq import BART, T5, BARTConfig, T5Config
from course_lib.models.weights import (
    fingerprint,
    from_pretrained,
    from_transformers,
    fused_rows,
    save_pretrained,
    to_transformers,
    transformers_names,
    transformers_weights,
)

DecoderOutput = EncoderOutput = Seq2SeqOutput = Output

__all__ = [
    "BART", "BARTConfig", "BERT", "BERTConfig", "BLOOM", "BLOOMConfig", "DecoderOutput",
    "EncoderOutput", "GPT2", "GPT2Config", "Llama", "LlamaConfig", "RoBERTa", "RoBERTaConfig",
    "ScalarHead", "Seq2SeqOutput", "T5", "T5Config", "WithScalarHead", "fingerprint",
    "from_pretrained", "from_transformers", "fused_rows", "mask_inputs", "positions_from_mask",
    "save_pretrained", "to_transformers", "transformers_names", "transformers_weights",
]  # fmt: skip

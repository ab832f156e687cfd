"""The course's models, in plain PyTorch, with transformers' calling convention."""

from course_lib.models.decoder import DecoderOutput, Llama, LlamaConfig
from course_lib.models.weights import (
    from_pretrained,
    from_transformers,
    save_pretrained,
    to_transformers,
)

__all__ = [
    "DecoderOutput", "Llama", "LlamaConfig", "from_pretrained", "from_transformers",
    "save_pretrained", "to_transformers",
]  # fmt: skip

"""Prompts: templates, few-shot examples, votes over sampled chains, candidate answers compared.

A model is one that follows transformers' calling convention, together with its tokenizer, or any
function from text to text (``course_lib.completion``).
Simplified away: chat messages; choosing examples by their likeness to the query; a search for
better prompts.
"""

from course_lib.completion import complete, context_size, token_counter
from course_lib.measuring import Interval, Result, grade, parse_answer, wilson
from course_lib.prompting.answers import (
    SeedResults,
    Vote,
    evaluate,
    evaluate_seeds,
    majority,
    self_consistency,
)
from course_lib.prompting.candidates import (
    CONTENT_FREE,
    CandidateLogps,
    calibrate,
    candidate_logps,
    choose,
)
from course_lib.prompting.heads import attention_weights, induction_attention, without_heads
from course_lib.prompting.templates import PARTS, Example, FewShot, Input, Prompt, few_shot

__all__ = [
    "CONTENT_FREE", "PARTS", "CandidateLogps", "Example", "FewShot", "Input", "Interval", "Prompt",
    "Result", "SeedResults", "Vote", "attention_weights", "calibrate", "candidate_logps",
    "choose", "complete", "context_size", "evaluate", "evaluate_seeds", "few_shot", "grade",
    "induction_attention", "majority", "parse_answer", "self_consistency", "token_counter",
    "wilson", "without_heads",
]  # fmt: skip

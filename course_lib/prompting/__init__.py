"""Prompts: templates, few-shot examples, votes over sampled chains, scores of candidate answers.

A model is one that follows transformers' calling convention, together with its tokenizer, or any
function from text to text (``course_lib.completion``).
Simplified away: chat messages; choosing examples by their likeness to the query; a search for
better prompts.
"""

from course_lib.completion import complete, context_size, token_counter
from course_lib.measuring import Interval, parse_answer, wilson
from course_lib.prompting.answers import (
    Result,
    SeedResults,
    Vote,
    evaluate,
    evaluate_seeds,
    grade,
    majority,
    self_consistency,
)
from course_lib.prompting.candidates import (
    CONTENT_FREE,
    Scores,
    calibrate,
    choose,
    score_candidates,
)
from course_lib.prompting.heads import attention_weights, induction_scores, without_heads
from course_lib.prompting.templates import PARTS, Example, FewShot, Input, Prompt, few_shot

__all__ = [
    "CONTENT_FREE", "PARTS", "Example", "FewShot", "Input", "Interval", "Prompt", "Result",
    "Scores", "SeedResults", "Vote", "attention_weights", "calibrate", "choose", "complete",
    "context_size", "evaluate", "evaluate_seeds", "few_shot", "grade", "induction_scores",
    "majority", "parse_answer", "score_candidates", "self_consistency", "token_counter", "wilson",
    "without_heads",
]  # fmt: skip

"""Prompting: templates, few-shot examples, votes, candidates compared, calibration, heads."""

import copy
import random
from collections import Counter
from itertools import cycle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import llama
from text_models import Bigrams, Words
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.testing import assert_close

from course_lib.models import GPT2, GPT2Config, to_transformers
from course_lib.ops import token_logprobs
from course_lib.prompting import (
    CONTENT_FREE,
    PARTS,
    Prompt,
    Result,
    SeedResults,
    attention_weights,
    calibrate,
    candidate_logps,
    choose,
    complete,
    evaluate,
    evaluate_seeds,
    few_shot,
    grade,
    induction_attention,
    majority,
    self_consistency,
    token_counter,
    without_heads,
)
from course_lib.world import evaluate as world

steady = settings(max_examples=60, deadline=None, derandomize=True)
texts = st.text(max_size=8)
pairs = st.lists(st.tuples(texts, texts), max_size=5)
FULL = Prompt("Give the plural.", "Names stay.", "It is for a dictionary.", "One word.")
PLURALS = [("dog", "dogs"), ("cat", "cats"), ("fox", "foxes"), ("cow", "cows"), ("pig", "pigs")]


# --- templates ----------------------------------------------------------------------------------


def test_every_part_stands_on_its_line_in_order():
    assert FULL.render("fox", PLURALS[:2]) == (
        "Give the plural.\nNames stay.\nIt is for a dictionary.\nOne word.\n"
        "dog -> dogs\ncat -> cats\nfox ->"
    )


@pytest.mark.parametrize("part", PARTS)
def test_a_part_left_out_takes_its_line_with_it(part):
    lines = FULL.render("fox", PLURALS).split("\n")
    lines.remove(getattr(FULL, part))
    assert FULL.without(part).render("fox", PLURALS) == "\n".join(lines)


def test_without_all_parts_only_examples_are_left():
    assert FULL.without(*PARTS) == Prompt()
    assert Prompt(trigger="So").without("trigger") == Prompt()
    with pytest.raises(ValueError, match=r"Unknown parts \['role'\]"):
        FULL.without("role")


def test_several_placeholders_and_numbers():
    """The parts take their values from the query, an example its own."""
    prompt = Prompt(context="Today is {day}.", layout="{number}. {a} {sign} {b} = {output}\n")
    example = ({"a": "1", "sign": "+", "b": "2"}, "3")
    query = {"a": "4", "sign": "-", "b": "1", "day": "Monday"}
    assert prompt.render(query, [example]) == "Today is Monday.\n1. 1 + 2 = 3\n2. 4 - 1 ="


@pytest.mark.parametrize(
    ("layout", "trigger", "text"),
    [
        ("Q: {input}\nA: {output}\n", "Step by step.", "Q: x\nA: Step by step."),
        ("{input}\n{output}\n\n", "Well,", "x\nWell,"),
        ("{{{input}}} is {{{output}}}. {{output}}\n", "", "{x} is {"),
        ("{input} -> {output} ({note})\n", "", "x ->"),
    ],
)
def test_the_query_stops_before_the_output(layout, trigger, text):
    assert Prompt(layout=layout, trigger=trigger).render("x") == text


@steady
@given(query=texts, examples=pairs, output=texts)
def test_a_query_is_an_example_up_to_its_output(query, examples, output):
    """Whatever braces the values hold: they are not read as placeholders."""
    prompt = Prompt(instruction="Do {{it}}.")
    asked = prompt.render(query, examples)
    answered = prompt.render("", [*examples, (query, output)])
    assert answered == f"{asked.removesuffix(' ->')} -> {output}\n ->"
    assert asked.startswith("Do {it}.\n")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "{input} ->"}, "must hold {output} once"),
        ({"layout": "{output} <- {input}"}, "must hold {output} once"),
        ({"layout": "{number}. {output}"}, "must hold {output} once"),
        ({"layout": "{input} {output} {output}"}, "must hold {output} once"),
        ({"layout": "{input -> {output}"}, "layout .* cannot be read|no plain name"),
        ({"instruction": "Use {}."}, "no plain name"),
        ({"instruction": "Use {0}."}, "no plain name"),
        ({"context": "See {input.__class__}."}, "no plain name"),
        ({"objective": "Round {input:.2f}."}, "no plain name"),
        ({"output_format": "JSON }"}, "output_format 'JSON }' cannot be read"),
        ({"instruction": "Write {output}."}, "only the layout shows outputs"),
    ],
)
def test_templates_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Prompt(**fields)


def test_an_unknown_placeholder_is_named():
    with pytest.raises(ValueError, match="unknown placeholder {day}: this input gives input, numb"):
        Prompt(context="Today is {day}.").render("x")
    with pytest.raises(ValueError, match="unknown placeholder {b}: this input gives a, number"):
        Prompt(layout="{a} {b} {output}").render({"a": "1"})


@pytest.mark.parametrize(
    ("figure", "prompt"),
    [
        ("unseen_labels_4shot", Prompt()),
        ("expr3_direct", Prompt(layout="Q: {input}\nA: {output}\n")),
        ("expr3_steps", Prompt(layout="Q: {input}\nA: {output}\n")),
        ("twohop_trigger", Prompt(layout="Q: {input}\nA: {output}\n", trigger=world.TRIGGER)),
    ],
)
def test_the_worlds_items_are_such_prompts(figure, prompt):
    """Taken apart at the arrow or at "A:", and put together again, they are the same texts."""
    cut = " -> " if "->" in prompt.layout else "\nA: "

    def bare(text):
        return text.removeprefix("Q: ")

    for seed in range(5):
        item = world.FIGURES[figure](random.Random(seed))
        examples = [tuple(bare(e.removesuffix("\n")).split(cut)) for e in item.examples]
        query = bare(item.query).split(cut.rstrip())[0].rstrip()
        assert prompt.render(query, examples) == "".join(item.examples) + item.query


# --- few-shot -----------------------------------------------------------------------------------


def test_examples_depend_on_the_generator_alone():
    draws = [few_shot(Prompt(), "hen", PLURALS, 3, random.Random(seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0].text == Prompt().render("hen", draws[0].examples)


def test_every_choice_and_order_is_drawn_alike():
    """Two of three examples in order: six draws, each 1/6 of 3000 = 500, deviation 20."""
    counts = Counter(few_shot(Prompt(), "q", PLURALS[:3], 2, rng).examples
                     for rng in map(random.Random, range(3000)))  # fmt: skip
    assert len(counts) == 6 and all(abs(n - 500) < 100 for n in counts.values())


def test_the_query_itself_is_no_example():
    for seed in range(20):
        assert ("fox", "foxes") not in few_shot(
            Prompt(), "fox", PLURALS, 4, random.Random(seed)
        ).examples
    with pytest.raises(ValueError, match="k=5 examples cannot be drawn: the pool has 4"):
        few_shot(Prompt(), "fox", PLURALS, 5, random.Random(0))


def test_the_budget_keeps_the_examples_next_to_the_query():
    """An example has 3 words, the query 2, the instruction 3: a budget of 12 holds two examples."""
    prompt = Prompt(instruction="Give the plural.")
    budget = {"budget": 12, "count_tokens": lambda text: len(text.split())}
    free = few_shot(prompt, "hen", PLURALS, 4, random.Random(0))
    tight = few_shot(prompt, "hen", PLURALS, 4, random.Random(0), **budget)
    assert tight.examples == free.examples[-2:]
    assert tight.text.startswith("Give the plural.\n") and tight.text.endswith("hen ->")
    assert len(few_shot(prompt, "hen", PLURALS, None, random.Random(0), **budget).examples) == 2


@pytest.mark.parametrize(
    ("k", "budget", "message"),
    [
        (2, 4, "No example fits into 4 tokens beside the query"),
        (2, 1, "needs 1 tokens more than the budget of 1"),
        (0, 1, "needs 1 tokens more"),
        (-1, 9, "k=-1 examples cannot be drawn"),
        (6, 9, "the pool has 5"),
    ],
)
def test_examples_that_cannot_be_had(k, budget, message):
    with pytest.raises(ValueError, match=message):
        few_shot(Prompt(), "hen", PLURALS, k, random.Random(0), budget=budget,
                 count_tokens=lambda text: len(text.split()))  # fmt: skip


def test_a_budget_needs_a_counter_and_none_at_all_needs_none():
    with pytest.raises(ValueError, match="give count_tokens too"):
        few_shot(Prompt(), "hen", PLURALS, 1, random.Random(0), budget=9)
    assert few_shot(Prompt(), "hen", [], 0, random.Random(0)).text == "hen ->"


# --- votes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "winner", "share"),
    [
        (["3", "4", "4"], "4", 2 / 3),
        (["4", "3", "3", "4"], "4", 1 / 2),  # equals: the one given first
        (["3", "4", "4", "3"], "3", 1 / 2),
        (["", "", "", "7"], "7", 1 / 4),  # chains without an answer do not vote
        (["", ""], "", 1.0),
    ],
)
def test_majority(answers, winner, share):
    vote = majority(answers)
    assert (vote.answer, vote.share, vote.answers) == (winner, share, tuple(answers))


@steady
@given(st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1))
def test_no_answer_has_more_votes_than_the_winner(answers):
    vote = majority(answers)
    voting = [a for a in answers if a] or answers
    assert vote.share == voting.count(vote.answer) / len(answers)
    for other in voting:
        more = voting.count(vote.answer) - voting.count(other)
        assert more > 0 or (more == 0 and answers.index(vote.answer) <= answers.index(other))


def test_votes_of_a_function_from_text_to_text():
    """Each prompt has its own answers: 2, 5, 5 and 8, 8, 9."""
    said = {"a": cycle(["The answer is 2.", "1 + 4 = 5. The answer is 5.", " 5"]),
            "b": cycle([" 8", " 8", " 9"])}  # fmt: skip
    votes = self_consistency(lambda p: next(said[p]), None, ["a", "b"], 3, 8, generator=None)
    assert [v.answers for v in votes] == [("2", "5", "5"), ("8", "8", "9")]
    assert [v.answer for v in votes] == ["5", "8"]


def test_the_vote_finds_what_is_likelier():
    """At temperature 1 "cat" follows A: with .6 and B: with .4. Of 400 samples 240 ± 10 are cat;
    at temperature .5 with .36 / (.36 + .16) = .69, 277 ± 9."""
    tokenizer = Words("A: B: cat dog \\n")
    model = Bigrams(tokenizer, {"A:": {"cat": 0.6, "dog": 0.4}, "B:": {"cat": 0.4, "dog": 0.6}})
    for temperature, expected in ((1.0, 240), (0.5, 277)):
        a, b = self_consistency(model, tokenizer, ["A:", "B:"], 400, 1, temperature=temperature,
                                generator=torch.Generator().manual_seed(0))  # fmt: skip
        assert (a.answer, b.answer) == ("cat", "dog")
        assert abs(400 * a.share - expected) < 35 and abs(400 * b.share - expected) < 35


@pytest.mark.parametrize("settings", [{"samples": 0}, {"samples": 4, "temperature": 0.0}])
def test_chains_that_cannot_differ_do_not_vote(settings):
    with pytest.raises(ValueError, match="chains vote only where they can differ"):
        self_consistency(str.upper, None, ["a"], max_new_tokens=4, generator=None, **settings)


def test_a_vote_without_answers_is_refused():
    with pytest.raises(ValueError, match="no answers to vote on"):
        majority([])


# --- grading ------------------------------------------------------------------------------------


def test_evaluation_completes_parses_and_grades(capsys):
    prompts = [f"{w} ->" for w in ("dog", "cat", "fox")]
    model = {"dog ->": " dogs.\nhen", "cat ->": " cat", "fox ->": " The answer is foxes."}
    result = evaluate(model.__getitem__, None, prompts, ["dogs", "cats", "foxes"])
    assert result.predictions == ("dogs", "cat", "foxes") and result.hits == (True, False, True)
    assert "3/3" in capsys.readouterr().err
    shouted = evaluate(model.__getitem__, None, prompts, [" CAT"] * 3, parse=str.upper,
                       progress=False)  # fmt: skip
    assert shouted.hits == (False, True, False) and capsys.readouterr().err == ""


def test_answers_must_match_in_number():
    for predictions, answers in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(ValueError, match=f"{len(predictions)} prompts for {len(answers)}"):
            evaluate(str.upper, None, predictions, answers)


def test_seeds_are_pooled():
    """Two of two and one of two right: 3 of 4, the interval of four items and not of two."""
    seeds = SeedResults((grade(["a", "b"], ["a", "b"]), grade(["a", "b"], ["a", "c"])))
    assert (seeds.least, seeds.accuracy, seeds.most) == (0.5, 0.75, 1.0)
    assert seeds.pooled == Result(("a", "b", "a", "b"), (True, True, True, False))
    assert str(seeds) == "0.750 (95 %: 0.301 to 0.954, n = 4; seeds 0.500 to 1.000)"


def test_each_seed_draws_its_own_items_in_order():
    """The model knows what seed 5 asks and nothing else; a seed draws alike beside any others."""

    def draw(rng):
        n = rng.randrange(10**6)
        return f"{n}", f"a{n}"

    rng = random.Random(5)
    known = dict(draw(rng) for _ in range(3))
    seeds = evaluate_seeds(lambda p: known.get(p, "?"), None, draw, 3, seeds=(4, 5, 6),
                           progress=False)  # fmt: skip
    assert [r.accuracy for r in seeds.results] == [0.0, 1.0, 0.0]
    assert seeds.results[1].predictions == tuple(known.values())


@pytest.mark.parametrize(("items", "seeds"), [(0, (0, 1)), (3, ()), (3, (1, 2, 1))])
def test_seeds_that_say_nothing_new(items, seeds):
    with pytest.raises(ValueError, match="at least one, all different"):
        evaluate_seeds(str.upper, None, lambda rng: ("a", "A"), items, seeds=seeds)


# --- candidates compared ------------------------------------------------------------------------

TOY = Words("A: big red cat dog end")
# After A: "dog" has .4; "big" .5, then "cat" .5, then "end" .9: big cat .25, big cat end .225.
TABLE = {"A:": {"dog": 0.4, "big": 0.5, "end": 0.1}, "big": {"cat": 0.5, "red": 0.5},
         "cat": {"end": 0.9, "dog": 0.1}}  # fmt: skip


def test_length_normalisation_changes_the_winner():
    """log .4 = -.9163 is more than log(.5 · .5 · .9) = -1.4917, but less than a third of it."""
    found = candidate_logps(Bigrams(TOY, TABLE), TOY, ["A:", "big A:"], ["dog", "big cat end"])
    assert found.lengths.tolist() == [[1, 3]] * 2
    assert_close(found.summed, torch.tensor([[-0.9163, -1.4917]] * 2), atol=1e-4, rtol=0)
    assert_close(found.per_token, torch.tensor([[-0.9163, -0.4972]] * 2), atol=1e-4, rtol=0)
    assert choose(found.summed, ["dog", "big cat end"]) == ["dog", "dog"]
    assert choose(found.per_token, ["dog", "big cat end"]) == ["big cat end", "big cat end"]


def test_a_start_token_stands_before_the_prompt_alone():
    """Before the candidate too it would be a token more, of probability 0 after A:."""
    tokenizer = Words("A: big red cat dog end", start="red")
    assert token_counter(tokenizer)("A:") == 2
    found = candidate_logps(Bigrams(tokenizer, TABLE), tokenizer, ["A:"], ["dog", "big cat"])
    assert found.lengths.tolist() == [[1, 2]]
    assert_close(found.summed.exp(), torch.tensor([[0.4, 0.25]]))


def test_each_prompt_may_have_its_own_candidates():
    """p(dog | A:) = .4, p(end | A:) = .1; p(cat | big) = p(red | big) = .5: of equals the first."""
    own = [["dog", "end"], ["cat", "red"]]
    logps = candidate_logps(Bigrams(TOY, TABLE), TOY, ["A:", "A: big"], own).summed
    assert_close(logps.exp(), torch.tensor([[0.4, 0.1], [0.5, 0.5]]))
    assert choose(logps, own) == ["dog", "cat"]
    assert choose(-logps, own) == ["end", "cat"]


@pytest.mark.parametrize(
    ("prompts", "candidates", "message"),
    [
        (["A:"], [], r"\[0\] candidates: every prompt needs the same number, at least one"),
        (["A:"], [[]], "at least one"),
        (["A:"], ["dog", ""], "Candidate '' has no token"),
        (["A:"], ["dog", "dog"], "Candidates repeat"),
        (["A:"], "dog", "candidates is one text, 'dog'"),
        (["A:"], ["dog", ["cat"]], "mix texts and lists"),
        (["A:", "A:"], [["dog"], ["cat", "red"]], r"\[1, 2\] candidates"),
        (["A:", "A:"], [["dog"]], "1 lists of candidates for 2 prompts"),
        ([], ["dog"], "0 lists of candidates for 0 prompts"),
        ("A:", ["dog"], "one text: put it into a list"),
        (["A:", ""], ["dog"], "Prompt 1 has no token"),
        (["A: " * 31], ["dog", "big cat"], "'big cat' of 2 exceed the context of 32"),
    ],
)
def test_candidates_that_cannot_be_compared(prompts, candidates, message):
    with pytest.raises(ValueError, match=message):
        candidate_logps(Bigrams(TOY, TABLE), TOY, prompts, candidates)


def test_a_function_has_no_probabilities():
    with pytest.raises(TypeError, match="compared by the model's logits"):
        candidate_logps(str.upper, None, ["a"], ["b"])


def test_choices_need_one_candidate_a_column():
    for candidates in (["a"], [["a", "b"]], [["a", "b"], ["a"]]):
        with pytest.raises(ValueError, match="give 2 candidates for all 2 prompts"):
            choose(torch.zeros(2, 2), candidates)


# --- real tokens and real models ----------------------------------------------------------------

LINES = ["dog -> animal", "cat -> animal", "red -> colour", "blue -> colour", "pear -> fruit"]


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level BPE with a handful of merges: candidates have several tokens."""
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(LINES, trainers.BpeTrainer(
        vocab_size=272, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=bpe)  # fmt: skip


@pytest.fixture(scope="module")
def pair(tokenizer):
    """Our model, and transformers' with its weights."""
    ours = llama(vocab_size=len(tokenizer), block_size=64)
    return ours, to_transformers(ours).eval()


def learnt_positions(vocab_size: int) -> GPT2:
    """Unlike Llama it notices when padding shifts a text's positions."""
    model = GPT2(GPT2Config(vocab_size, 1, 2, 16, 64), torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10 if p.ndim == 2 else 1)
    return model


def one_at_a_time(model, tokenizer, prompt, candidate) -> float:
    """No batch, no padding, no tail of the logits: the sum over the candidate's tokens."""
    head = tokenizer(prompt)["input_ids"]
    ids = torch.tensor([head + tokenizer(candidate)["input_ids"]])
    with torch.no_grad():
        return token_logprobs(model(ids).logits, ids)[0, len(head) - 1 :].sum().item()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_logps_are_those_of_one_text_at_a_time(tokenizer, pair, batch_size):
    prompts = ["dog ->", "x", LINES[0] + "\n" + LINES[2] + "\ncat ->"]
    candidates = [" animal", " c", " colour and fruit"]
    for model in (*pair, learnt_positions(len(tokenizer))):
        found = candidate_logps(model, tokenizer, prompts, candidates, batch_size=batch_size)
        expected = [[one_at_a_time(model, tokenizer, p, c) for c in candidates] for p in prompts]
        assert_close(found.summed, torch.tensor(expected), atol=1e-4, rtol=1e-5)
        assert found.lengths[0].tolist() == [len(tokenizer(c)["input_ids"]) for c in candidates]
        assert len({*found.lengths[0].tolist()}) == 3
    assert not found.summed.requires_grad


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    prompts=st.lists(st.text("abcd ->\n", min_size=1, max_size=12), min_size=1, max_size=5),
    candidates=st.lists(st.text("abc ", min_size=1, max_size=6), min_size=1, max_size=3,
                        unique=True),
    batch_size=st.integers(1, 7),
)  # fmt: skip
def test_batches_compare_and_write_as_single_prompts(
    tokenizer, pair, prompts, candidates, batch_size
):
    model = pair[0]
    expected = [[one_at_a_time(model, tokenizer, p, c) for c in candidates] for p in prompts]
    found = candidate_logps(model, tokenizer, prompts, candidates, batch_size=batch_size)
    assert_close(found.summed, torch.tensor(expected), atol=1e-4, rtol=1e-5)
    written = complete(model, tokenizer, prompts, 8, batch_size=batch_size)
    assert written == [complete(model, tokenizer, [p], 8)[0] for p in prompts]


def test_our_model_transformers_and_a_function_are_asked_alike(tokenizer, pair):
    """The same prompts through all three: the function looks up what our model wrote."""
    prompt, count = Prompt(instruction="Name the kind."), token_counter(tokenizer)
    pool = [tuple(line.split(" -> ")) for line in LINES]
    prompts = []
    for seed, word in enumerate(("dog", "blue", "fig")):
        rich = few_shot(prompt, word, pool, None, random.Random(seed))
        tight = few_shot(prompt, word, pool, None, random.Random(seed), budget=40,
                         count_tokens=count)  # fmt: skip
        n = len(tight.examples)
        assert 0 < n < len(rich.examples) and count(tight.text) <= 40
        assert count(prompt.render(word, rich.examples[-n - 1 :])) > 40
        prompts.append(tight.text)
    ours, theirs = (complete(m, tokenizer, prompts, 8) for m in pair)
    assert ours == theirs and len({*ours}) > 1
    table = dict(zip(prompts, ours))
    answers = evaluate(pair[0], tokenizer, prompts, [""] * 3, 8, progress=False).predictions
    for model, reader in ((pair[1], tokenizer), (table.__getitem__, None)):
        result = evaluate(model, reader, prompts, answers, 8, progress=False)
        assert result.accuracy == 1.0 and result.predictions == answers


# --- calibration --------------------------------------------------------------------------------


def test_calibration_by_hand():
    """.8 / .9 against .2 / .1 is .889 against 2: the second wins, with 2 / 2.889 = .6923."""
    logps, free = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.9, 0.1]]).log()
    assert_close(calibrate(logps, free).exp(), torch.tensor([[0.3077, 0.6923]]), atol=1e-4, rtol=0)
    assert choose(logps, ["yes", "no"]) == ["yes"]
    assert choose(calibrate(logps, free), ["yes", "no"]) == ["no"]


def test_content_free_probabilities_are_averaged_after_normalising():
    """.02 against .08 is .2 against .8; with .6 against .4 the mean is .4 against .6. Adding the
    raw probabilities (.62, .48) or averaging their logarithms would say otherwise.

    .5 / .4 against .5 / .6: 3/5 against 2/5.
    """
    free = torch.tensor([[0.02, 0.08], [0.6, 0.4]]).log()
    calibrated = calibrate(torch.tensor([[0.1, 0.1]]).log(), free)
    assert_close(calibrated.exp(), torch.tensor([[0.6, 0.4]]))


@steady
@given(seed=st.integers(0, 10**6), N=st.integers(1, 4), C=st.integers(1, 5), M=st.integers(1, 3))
def test_calibration_leaves_no_bias(seed, N, C, M):
    """The content-free input itself becomes undecided; with no bias nothing changes; what shifts
    all candidates of a prompt alike does not matter."""
    g = torch.Generator().manual_seed(seed)
    logps, free = torch.randn(N, C, generator=g), torch.randn(M, C, generator=g)
    assert_close(calibrate(free[:1], free[:1]).exp(), torch.full((1, C), 1 / C))
    assert_close(calibrate(logps, torch.zeros(M, C)), logps.log_softmax(1))
    assert_close(calibrate(logps + 3, free - 5), calibrate(logps, free), atol=1e-5, rtol=1e-4)
    assert_close(calibrate(logps, free).exp().sum(1), torch.ones(N))


def test_calibration_of_a_biased_model():
    """Bigrams that answer "dog" .9 to an unknown input and .8 to a cat: calibrated it says cat."""
    tokenizer = Words("N/A [MASK] paws -> cat dog")
    following = {"N/A": {"->": 1.0}, "->": {"dog": 0.9, "cat": 0.1},
                 "paws": {"dog": 0.8, "cat": 0.2}}  # fmt: skip
    prompt, model, labels = Prompt(layout="-> {input} {output}\n"), None, ["dog", "cat"]
    model = Bigrams(tokenizer, following | {w: following["->"] for w in ("N/A", "[MASK]")})
    logps = candidate_logps(model, tokenizer, [prompt.render("paws")], labels).summed
    free = candidate_logps(model, tokenizer, [prompt.render(x) for x in CONTENT_FREE], labels)
    assert choose(logps, labels) == ["dog"]
    assert choose(calibrate(logps, free.summed), labels) == ["cat"]


@pytest.mark.parametrize(
    ("logps", "free"), [((2, 3), (1, 2)), ((3,), (1, 3)), ((2, 3), (3,)), ((2, 3), (0, 3))]
)
def test_shapes_of_calibration(logps, free):
    with pytest.raises(ValueError, match="must be|is empty"):
        calibrate(torch.zeros(logps), torch.zeros(free))


# --- heads --------------------------------------------------------------------------------------


def test_a_silent_head_is_one_whose_columns_are_zero(pair):
    """Heads 1 and 3 of layer 0 and head 2 of layer 1, of 4 heads 6 wide; afterwards all speak."""
    ours, theirs = pair
    heads, ids = [(0, 1), (0, 3), (1, 2)], torch.arange(2, 12)[None]
    cut = copy.deepcopy(ours)
    with torch.no_grad():
        for layer, head in heads:
            cut.blocks[layer].attention.out.weight[:, 6 * head : 6 * (head + 1)] = 0
        before, expected = ours(ids).logits, cut(ids).logits
        with without_heads([b.attention.out for b in ours.blocks], heads, 4):
            assert_close(ours(ids).logits, expected)
        with without_heads([x.self_attn.o_proj for x in theirs.model.layers], heads, 4):
            assert_close(theirs(ids).logits, expected, atol=1e-5, rtol=1e-4)
        assert (before - expected).abs().max() > 0.1
        assert torch.equal(ours(ids).logits, before)


def test_silence_leaves_the_heads_own_output_alone():
    """Four inputs are two heads of width 2; 1 + 2 + 3 + 4 without head 1 is 3."""
    matrix, x = torch.nn.Linear(4, 1, bias=False), torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    torch.nn.init.ones_(matrix.weight)
    with without_heads([matrix], [(0, 1)], 2):
        assert matrix(x).item() == 3.0
    assert x.tolist() == [[[1.0, 2.0, 3.0, 4.0]]] and matrix(x).item() == 10.0


def test_heads_speak_again_after_an_error(pair):
    ours, ids = pair[0], torch.arange(2, 12)[None]
    before = ours(ids).logits
    projections = [b.attention.out for b in ours.blocks]
    with pytest.raises(KeyError), without_heads(projections, [(0, 0)], 4):
        raise KeyError
    assert torch.equal(ours(ids).logits, before)


@pytest.mark.parametrize("head", [(2, 0), (0, 4), (-1, 0), (0, -1)])
def test_a_head_that_is_not_there(pair, head):
    projections = [b.attention.out for b in pair[0].blocks]
    with pytest.raises(ValueError, match="There is no head"), without_heads(projections, [head], 4):
        pass
    assert not any(p._forward_pre_hooks for p in projections)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), heads=st.sampled_from([(4, 4), (4, 2), (4, 1)]),
       B=st.integers(1, 3), T=st.integers(1, 9))  # fmt: skip
def test_attention_weights_are_those_of_transformers(seed, heads, B, T):
    ours = llama(vocab_size=32, n_head=heads[0], n_kv_head=heads[1])
    ids = torch.randint(0, 32, (B, T), generator=torch.Generator().manual_seed(seed))
    theirs = to_transformers(ours).eval()
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        expected = torch.stack(theirs(ids, output_attentions=True).attentions)
    weights = attention_weights(ours, ids)
    assert_close(weights, expected, atol=1e-5, rtol=1e-4)
    assert not weights.requires_grad


def test_induction_attention_by_hand():
    """A B C A B C: the second A (place 3) looks at the first B (place 1), B (4) at C (2).

    Head 0 does so with .9 and .7, mean .8, whatever the last C does; head 1 looks at the token
    before, head 2 at its own copy: both 0.
    """
    weights = torch.zeros(1, 1, 3, 6, 6)
    weights[0, 0, 0, 3, 1], weights[0, 0, 0, 4, 2], weights[0, 0, 0, 5, 3] = 0.9, 0.7, 0.1
    for query in range(1, 6):
        weights[0, 0, 1, query, query - 1] = 1
        weights[0, 0, 2, query, max(query - 3, 0)] = 1
    assert_close(induction_attention(weights), torch.tensor([[0.8, 0.0, 0.0]]))
    both = torch.cat([weights, torch.zeros_like(weights)], dim=1)
    assert_close(induction_attention(both), torch.tensor([[0.4, 0.0, 0.0]]))


@pytest.mark.parametrize("T", [2, 5])
def test_a_text_without_two_halves(T):
    with pytest.raises(ValueError, match=f"{T} tokens are no text of two equal halves"):
        induction_attention(torch.zeros(1, 1, 1, T, T))

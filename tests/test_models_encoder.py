"""BERT and RoBERTa: parity with transformers, positions, what may see what, what is refused."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_record import Parity
from random_families import SEEDS, SIZES, build, there_and_back
from random_models import batches, compact

from course_lib.models import BERT, BERTConfig, RoBERTa, RoBERTaConfig

HEADS = ("BertForMaskedLM", "BertForSequenceClassification", "RobertaForMaskedLM",
         "RobertaForSequenceClassification")  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_logits_and_hidden_states_are_those_of_transformers(head):
    """Random shapes, token types and padding; random ids count RoBERTa's padding token too. Over
    there positions and the first token stand in columns, so it gets its padding on the right."""
    hf_class = getattr(transformers, head)

    @settings(max_examples=18, deadline=None, derandomize=True)
    @given(st.data(), st.fixed_dictionaries(SIZES), SEEDS)
    def run(data, sizes, seed):
        n_label = data.draw(st.integers(2, 5))
        hf_model = build(hf_class, sizes, seed, num_labels=n_label)
        model = there_and_back(hf_model)
        ids, mask = data.draw(batches(sizes["vocab_size"]))
        types = torch.randint(3, ids.shape, generator=torch.Generator().manual_seed(seed))
        inputs = {
            "input_ids": ids,
            "attention_mask": data.draw(st.sampled_from([mask, mask.bool(), None])),
            "token_type_ids": data.draw(st.sampled_from([types, None])),
        }
        with torch.no_grad():
            ours = model(**inputs)
            if inputs["attention_mask"] is not None:
                right, there_ids, there_types = compact(mask, ids, types)
                inputs |= {"input_ids": there_ids, "attention_mask": right}
                if inputs["token_type_ids"] is not None:
                    inputs["token_type_ids"] = there_types
            theirs = hf_model(**inputs, output_hidden_states=True)
        unmasked = inputs["attention_mask"] is None
        kept, there = (slice(None),) * 2 if unmasked else (mask.bool(), right.bool())
        whole = ours.logits.shape == (len(ids), n_label) and "Sequence" in head
        assert whole or ours.logits.shape == (*ids.shape, sizes["vocab_size"])
        parity.tried()
        parity.compare(ours.last_hidden_state[kept], theirs.hidden_states[-1][there])
        at, there = (slice(None), slice(None)) if whole else (kept, there)
        parity.compare(ours.logits[at], theirs.logits[there])

    piece = "RoBERTa" if head.startswith("Ro") else "BERT"
    with Parity(piece, f"transformers.{head}", 1e-5) as parity:
        run()


def tiny(cls=BERT, config=BERTConfig, seed=0, **changes):
    """An encoder with weights ten times the usual, so that everything shows."""
    shape = {"vocab_size": 11, "n_layer": 2, "n_head": 3, "n_embd": 12, "n_inner": 10,
             "block_size": 8}  # fmt: skip
    model = cls(config(**shape | changes), torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    return model


IDS = torch.tensor([[4, 5, 6, 7]])


def test_an_encoder_sees_both_sides():
    """Changing the last token moves the hidden state of the first, and the other way round."""
    model, last, first = tiny(), IDS.clone(), IDS.clone()
    last[0, -1], first[0, 0] = 8, 8
    with torch.no_grad():
        x, moved_last, moved_first = (model(i).last_hidden_state[0] for i in (IDS, last, first))
    assert (x[0] - moved_last[0]).abs().max() > 1e-3
    assert (x[-1] - moved_first[-1]).abs().max() > 1e-3


@pytest.mark.parametrize(("cls", "config"), [(BERT, BERTConfig), (RoBERTa, RoBERTaConfig)])
def test_padding_on_the_right_changes_nothing(cls, config):
    """The ids under the padding are 1, RoBERTa's padding token, then something else for BERT."""
    model = tiny(cls, config)
    padded = torch.cat([IDS, torch.tensor([[1, 1, 1]])], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        alone, beside = model(IDS).logits, model(padded, mask).logits
        torch.testing.assert_close(beside[:, :4], alone, atol=1e-5, rtol=0)
        assert (model(padded).logits[:, :4] - alone).abs().max() > 1e-3


def test_roberta_counts_positions_from_behind_its_padding_token():
    """Padding token 1: tokens get rows 2, 3, 4, padding gets row 1; BERT's rows are 0 1 2 3."""
    ids = torch.tensor([[0, 5, 1, 7], [1, 1, 0, 5]])
    roberta = tiny(RoBERTa, RoBERTaConfig)
    assert roberta.positions_of(ids).tolist() == [[2, 3, 1, 4], [1, 1, 2, 3]]
    assert roberta.positions.weight.shape[0] == 8 + 2
    assert tiny().positions_of(ids).tolist() == [0, 1, 2, 3]
    assert roberta(torch.full((1, 8), 5)).logits.shape == (1, 8, 11)  # the last row is in use


def test_norms_stand_behind_the_sublayers():
    """With fresh norms each hidden vector leaves the last norm with mean 0 and variance 1."""
    with torch.no_grad():
        x = tiny()(IDS).last_hidden_state
    torch.testing.assert_close(x.mean(-1), torch.zeros(1, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.var(-1, correction=0), torch.ones(1, 4), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.ones(1, 9, dtype=torch.long)}, "position 8, 1 beyond the context of"),
        ({"input_ids": torch.tensor([[11]])}, r"span 11\.\.11, the vocabulary 0\.\.10"),
        ({"input_ids": torch.ones(1, 0, dtype=torch.long)}, "at least one token"),
        ({"input_ids": IDS, "attention_mask": torch.ones(1, 3)}, r"expected \(1, 4\)"),
        ({"input_ids": IDS.repeat(2, 1), "attention_mask": torch.tensor([[1] * 4, [0] * 4])},
         "attention_mask of row 1 is all 0"),
        ({"input_ids": IDS, "position_ids": torch.tensor([[0, 1, 2]])}, "position_ids has shape"),
        ({"input_ids": IDS, "position_ids": torch.tensor([[0, 1, 2, 8]])}, "position 8, 1 beyond"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        tiny()(**inputs)

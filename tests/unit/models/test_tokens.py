"""What the language model reads of a pair."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from ray_app.models.tokens import pad_pairs, pad_rows, pair_ids, token_rows


@pytest.fixture
def encoder_tokens(tiny_encoder: str) -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(tiny_encoder)


def padded(tokenizer: AutoTokenizer, queries: list[str], pins: list[str], **how: int) -> dict[str, Any]:
    return pad_pairs(pair_ids(tokenizer, queries, pins, **how), tokenizer.pad_token_id)


@pytest.mark.parametrize(
    ("query", "pin", "read"),
    [
        ("red cup", "laptop " * 50, "[CLS] red cup [SEP] laptop laptop laptop [SEP]"),
        ("cup", "", "[CLS] cup [SEP] [SEP]"),
        ("cup " * 50, "laptop", "[CLS] cup cup cup cup cup [SEP] [SEP]"),
    ],
)
def test_a_long_pin_is_cut_and_the_query_stays_whole_unless_it_fills_everything(
    encoder_tokens, query, pin, read
) -> None:
    """A query that loses its last word is another query."""
    batch = padded(encoder_tokens, [query], [pin], max_tokens=8, query_last=False)
    assert encoder_tokens.convert_ids_to_tokens(batch["input_ids"][0].tolist()) == read.split()


def test_masks_mark_exactly_the_two_spans(encoder_tokens: AutoTokenizer) -> None:
    batch = padded(encoder_tokens, ["red cup", "hub"], ["blue", "usb hub cable"], max_tokens=16, query_last=False)
    assert batch["query_mask"].tolist() == [[0, 1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]
    assert batch["pin_mask"].tolist() == [[0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1, 0]]


def test_a_decoder_reads_the_pin_first_and_ends_with_the_query(tiny_decoder: str) -> None:
    """The last token must have read everything, and queries of one pin must share its prefix."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    batch = padded(tokenizer, ["red cup"], ["blue mug"], max_tokens=16, query_last=True)
    shown = [w for w in tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist()) if w != "[UNK]"]
    assert shown == ["[CLS]", "blue", "mug", "red", "cup"]
    assert batch["query_mask"][0].tolist()[-2:] == [1, 1]


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_padded_later_are_what_the_tokenizer_pads(encoder_tokens: AutoTokenizer, side: str) -> None:
    encoder_tokens.padding_side = side
    texts = ["red cup", "cup", "laptop hub " * 20]
    wanted = encoder_tokens(texts, truncation=True, max_length=16, padding=True, return_tensors="pt")
    found = pad_rows(encoder_tokens, token_rows(encoder_tokens, texts, 16))
    assert {name: t.tolist() for name, t in found.items()} == {name: wanted[name].tolist() for name in found}
    assert set(found) == {"input_ids", "attention_mask"}

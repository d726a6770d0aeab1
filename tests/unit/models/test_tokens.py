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


def words(tokenizer: AutoTokenizer, ids: list[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


def test_a_long_pin_is_cut_and_the_query_stays_whole(encoder_tokens: AutoTokenizer) -> None:
    """A query that loses its last word is another query."""
    batch = padded(encoder_tokens, ["red cup"], ["laptop " * 50], max_tokens=8, query_last=False)
    ids = batch["input_ids"][0].tolist()
    assert words(encoder_tokens, ids) == ["[CLS]", "red", "cup", "[SEP]", "laptop", "laptop", "laptop", "[SEP]"]


def test_a_query_that_fills_everything_leaves_no_pin_and_fits(encoder_tokens: AutoTokenizer) -> None:
    batch = padded(encoder_tokens, ["cup " * 50], ["laptop"], max_tokens=8, query_last=False)
    assert batch["input_ids"].shape == (1, 8)
    assert batch["pin_mask"].sum() == 0


def test_masks_mark_exactly_the_two_spans(encoder_tokens: AutoTokenizer) -> None:
    batch = padded(encoder_tokens, ["red cup", "hub"], ["blue", "usb hub cable"], max_tokens=16, query_last=False)
    assert batch["query_mask"].tolist() == [[0, 1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]
    assert batch["pin_mask"].tolist() == [[0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1, 0]]


def test_a_decoder_reads_the_pin_first_and_ends_with_the_query(tiny_decoder: str) -> None:
    """The last token must have read everything, and queries of one pin must share its prefix."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    batch = padded(tokenizer, ["red cup"], ["blue mug"], max_tokens=16, query_last=True)
    shown = [w for w in words(tokenizer, batch["input_ids"][0].tolist()) if w != "[UNK]"]
    assert shown == ["[CLS]", "blue", "mug", "red", "cup"]
    assert batch["query_mask"][0].tolist()[-2:] == [1, 1]


def test_an_empty_pin_text_is_a_valid_pair(encoder_tokens: AutoTokenizer) -> None:
    batch = padded(encoder_tokens, ["cup"], [""], max_tokens=8, query_last=False)
    assert words(encoder_tokens, batch["input_ids"][0].tolist()) == ["[CLS]", "cup", "[SEP]", "[SEP]"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_padded_later_are_what_the_tokenizer_pads(encoder_tokens: AutoTokenizer, side: str) -> None:
    encoder_tokens.padding_side = side
    texts = ["red cup", "cup", "laptop hub " * 20]
    wanted = encoder_tokens(texts, truncation=True, max_length=16, padding=True, return_tensors="pt")
    found = pad_rows(encoder_tokens, token_rows(encoder_tokens, texts, 16))
    assert {name: t.tolist() for name, t in found.items()} == {name: wanted[name].tolist() for name in found}
    assert set(found) == {"input_ids", "attention_mask"}

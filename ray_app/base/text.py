"""Text rules that every stage shares: normalising, tokens, and how a pin's fields become one text.

All of it decides what a language model or BM25 sees, so a change here is a change of recipe: raise `TEXT_VERSION`.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa

from ray_app.base.config import PinTextConfig

TEXT_VERSION = 2  # part of every recipe that contains text

FIELD_SEPARATOR = ". "
LIST_SEPARATOR = ", "

# A word: letters and digits with the combining marks that NFKC leaves apart (without them Hindi, Tamil or Thai words
# fall to pieces). `_` separates: "usb_c" is two words.
_MARKS = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)).startswith("M"))
_WORD = re.compile(f"[^\\W_](?:[^\\W_]|[{_MARKS}])*")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_GRAM = 4  # guessed: long enough to be rare by chance, short enough for stems
_SENTENCE_END = ".!?;:,"


def normalize_text(text: str | None) -> str:
    """NFKC, control characters as spaces, whitespace collapsed and stripped; `None` is the empty text."""
    if not text:
        return ""
    text = unicodedata.normalize("NFKC", text)
    if not text.isprintable():
        # Unprintable: controls, separators and zero-width characters. Joiners (U+200C, U+200D) carry meaning in
        # several scripts and in emoji, so they stay; other zero-width ones vanish instead of cutting a word.
        text = "".join(c if c.isprintable() or c in "\u200c\u200d" else _unprintable(c) for c in text)
    return " ".join(text.split())


def normalize_query(text: str | None) -> str:
    """`normalize_text` in lower case: the form under which queries are counted, joined and de-duplicated, and that models read.

    Not casefolded: that spells `weiße` as `weisse`, which language models have hardly ever read.
    """
    return normalize_text(normalize_text(text).lower())


def tokenize(text: str | None) -> list[str]:
    """Unicode word tokens of the casefolded text, in order, repeats kept (what BM25 and text match see)."""
    if text and text.isascii():  # the same tokens, ten times as fast
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(normalize_text(normalize_text(text).casefold()))


def stem_tokens(text: str | None) -> list[str]:
    """`tokenize` with English plural endings cut, so that laptop and laptops are one token."""
    return [stem for token in tokenize(text) if (stem := _singular(token))]


def char_grams(text: str | None) -> list[str]:
    """Character 4-grams of the stems written together: near for smartwatch / smart watch, laptop / lap-tops."""
    compact = "".join(stem_tokens(text))
    return [compact[i : i + _GRAM] for i in range(len(compact) - _GRAM + 1)]


def query_group(text: str | None) -> str:
    """Key under which near-duplicate queries fall together, so that a split never puts them on both sides.

    Casefolded letters and digits only, each word's plural s cut: laptop/laptops, smart watch/smartwatch.
    A query without letters and digits is its own normalised text.
    """
    return "".join(stem_tokens(text)) or normalize_query(text)


def render_pin_text(row: Mapping[str, Any], cfg: PinTextConfig) -> str:
    """One text of a pin's fields, in the order of the config.

    Each field is normalised and cut to its maximum at a word boundary; lists are joined with ", ", fields with ". ".
    Empty fields, and fields that an earlier field starts with, are left out.
    """
    return "".join(glue + text for _, glue, text in pin_text_parts(row, cfg))


def pin_text_parts(row: Mapping[str, Any], cfg: PinTextConfig) -> list[tuple[str, str, str]]:
    """Parts of `render_pin_text`: (field, separator from the previous part, text)."""
    parts: list[tuple[str, str, str]] = []
    for name in cfg.fields:
        text = cut_text(field_text(row.get(name)), cfg.max_field_chars.get(name, cfg.default_max_chars))
        if text and not any(_starts_with(earlier, text) for _, _, earlier in parts):
            # No "great product.. Next" where a field already ends its sentence.
            glue = "" if not parts else " " if parts[-1][2][-1] in _SENTENCE_END else FIELD_SEPARATOR
            parts.append((name, glue, text))
    return parts


def render_pin_texts(table: pa.Table, cfg: PinTextConfig) -> list[str]:
    """`render_pin_text` of every row of a `pin_texts` table; absent columns count as empty."""
    names = [name for name in cfg.fields if name in table.column_names]
    columns = [table.column(name).to_pylist() for name in names]
    if not columns:
        return [""] * table.num_rows
    return [render_pin_text(dict(zip(names, row, strict=True)), cfg) for row in zip(*columns, strict=True)]


def field_text(value: str | Sequence[str | None] | None) -> str:
    """One normalised text of a field's value: a string, a list of strings, or `None`."""
    if value is None or isinstance(value, str):
        return normalize_text(value)
    return LIST_SEPARATOR.join(text for text in map(normalize_text, value) if text)


def cut_text(text: str, max_chars: int) -> str:
    """The start of a text, at most `max_chars` long, cut at a word boundary where there is one in its second half."""
    if len(text) <= max_chars:
        return text
    head = text[:max_chars]
    if not text[max_chars].isspace():
        boundary = head.rfind(" ")
        # A text without spaces (Japanese, a URL) is cut where it is, rather than to almost nothing.
        if boundary >= max_chars // 2:
            head = head[:boundary]
    return head.rstrip(" ,;:")


def _unprintable(char: str) -> str:
    return "" if unicodedata.category(char) == "Cf" else " "


@lru_cache(maxsize=100_000)
def _singular(token: str) -> str:
    """The token without an English plural's ending; a lone "s" (of "kid's") vanishes. Rough, but the same each time."""
    if token == "s":
        return ""
    if len(token) <= 3 or not token.endswith("s") or token.endswith(("ss", "us", "is")):
        return token
    if token.endswith(("ches", "shes", "xes", "sses")):
        return token[:-2]
    return f"{token[:-3]}y" if token.endswith("ies") and len(token) > 4 else token[:-1]


def _starts_with(earlier: str, text: str) -> bool:
    """Return True if `earlier` starts with all of `text`, at a word boundary."""
    a, b = earlier.casefold(), text.casefold()
    return a.startswith(b) and (len(a) == len(b) or not a[len(b)].isalnum())

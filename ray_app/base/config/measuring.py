"""Sections about the built-in world, and about measuring."""

from typing import Annotated, Literal

from pydantic import Field

from ray_app.base.config.section import Fraction, PositiveInt, Section, TextField


class DemoConfig(Section):
    """The built-in world (docs/demo_world.md); written under `<output>/world`."""

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
    """A file per picture, or bytes in the pins table: better beyond some 100,000 pins."""


class EvaluateConfig(Section):
    """What is measured, on which pairs."""

    human_labels: str | None = None
    """A file of human labels to measure on; None: the test split of the run's own. A run whose config names a file keeps its
    queries out of sample, engaged queries and engagement; the report counts those that training has met."""
    bm25_fields: list[TextField] | None = None
    """What the BM25 baseline reads; None: what the zero-shot embedding reads."""
    num_resamples: PositiveInt = 1000
    confidence_level: Annotated[float, Field(gt=0, lt=1)] = 0.95


class ClickbaitConfig(Section):
    """Pins that draw clicks whatever they show: people of the simulation fall for them, those of the world's log do not."""

    fraction: Fraction = 0.1
    """Of the pins."""
    click_prob: Fraction = 0.35
    """Chance that a person who looks at one clicks it for its looks alone."""


class SimulateConfig(Section):
    """The online experiment in simulation, on the demo world (docs/simulation.md)."""

    num_searches: PositiveInt = 30_000
    """Each of them is shown to both arms."""
    num_logged_searches: PositiveInt = 10_000
    """Before the experiment: the engagement model learns from their clicks."""
    unseen_fraction: Fraction = 0.3
    """Of the searches, for queries that neither log nor labels know."""
    unseen_queries: PositiveInt = 2_000
    """How many of those there are."""
    candidates: Annotated[int, Field(ge=20, le=1000)] = 150
    """Pins per query at most that the upstream retrieval gives to every arm."""
    seed: Annotated[int, Field(ge=0, lt=1_000_000)] = 0
    """Of the people and their searches."""
    clickbait: ClickbaitConfig | None = ClickbaitConfig()
    """Of pins in the trade-off; None: people act by relevance alone there too, as they do in the comparison of the arms."""
    logging_policy_noise: Annotated[float, Field(ge=0)] = 0.5
    """Gumbel noise, in grades, on the scores of the ranker that made the log: without it only its favourites are seen."""
    min_scores: list[float] = [2.0, 3.0, 3.5, 4.0]
    """Use `filter`: expected grade below which a pin is dropped."""
    feature_scales: list[float] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    """Use `feature`: factor on what the engagement model has learned of the relevance score; 1: as learned."""
    loss_powers: list[float] = [0.5, 1.0, 2.0, 4.0]
    """Use `loss_weight`: a click counts ((score - 1) / 4) to this power."""
    boost_weights: list[float] = [0.15, 0.5, 1.0, 2.0, 4.0, 8.0]
    """Use `boost`: `serve.blend.engagement_weight`."""


class TransferConfig(Section):
    """How the student's vectors are measured on what they were not trained for (docs/transfer.md)."""

    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the boards that are measured; pin texts are made again without their titles."""
    max_boards: PositiveInt = 1000
    """More boards than that are not held out."""
    queries_per_board: PositiveInt = 10
    """Of each task at most, drawn at random; the board's figure is their mean."""
    min_saves: Annotated[int, Field(ge=2)] = 5
    """Boards with fewer saves are never held out."""
    recall_at: PositiveInt = 10


class AdjudicationConfig(Section):
    """The sheet of labelled pairs to adjudicate, which pipelines/agreement.py writes (docs/agreement.md)."""

    rows: PositiveInt = 100
    """Pairs at most."""
    rows_per_query: PositiveInt = 5

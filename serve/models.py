"""The HTTP API's bodies. Every text and list from outside has a limit; limits that a config sets are checked in the app."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ray_app.base.locales import UNKNOWN, canonical_locale

Query = Annotated[str, Field(min_length=1, max_length=2_000, description="As the user typed it.")]
PinId = Annotated[str, Field(min_length=1, max_length=512)]
Locale = Annotated[
    str,
    Field(
        max_length=35, examples=["en-US"],
        description=f"A BCP 47 tag; en_us and en_US.UTF-8 are en-US. {UNKNOWN}: not known, and then no pin is in its language.",
    ),
    AfterValidator(canonical_locale),
]  # fmt: skip


class Body(BaseModel):
    """Base of request bodies: an unknown key is an error, and so is `true` or "3" where a number is wanted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class EncodeRequest(Body):
    """Queries to embed."""

    queries: Annotated[list[Query], Field(min_length=1, max_length=256, examples=[["red mug"]])]


class EncodeResponse(BaseModel):
    """Unit vectors, row i for query i."""

    student: str = Field(description="Id of the student; vectors of another one must not meet these.")
    dim: int
    embeddings: list[list[float]]


class RerankRequest(Body):
    """One query and its candidates."""

    query: Query
    locale: Locale = UNKNOWN
    pin_ids: Annotated[list[PinId], Field(min_length=1, max_length=10_000)]
    top_k: Annotated[int, Field(ge=1)] | None = Field(None, description="How many to return; null: all.")


class PairRelevance(BaseModel):
    """Student scores of one pin."""

    pin_id: str
    score: float = Field(description="Expected grade, 1 to 5.")
    probs: list[float] = Field(description="Probability of grade 1..5.")
    grade: int = Field(description="The likeliest grade.")


class RerankResponse(BaseModel):
    """Candidates, best first."""

    release: str
    student: str
    results: list[PairRelevance]
    unknown_pin_ids: list[str] = Field(description="Candidates that this release does not have, in the order sent.")
    degraded: bool = Field(description="The language model was left out, for lack of time.")
    took_ms: float


class SearchRequest(Body):
    """A search as a user makes it."""

    query: Query
    locale: Locale = UNKNOWN
    top_k: Annotated[int, Field(ge=1, le=200)] = 20


class Understanding(BaseModel):
    """Interpretation of the query."""

    text: str = Field(description="Normalised.")
    language: str | None = Field(description="Of the words, by their looks; null: cannot say.")
    corrections: dict[str, str] = Field(description="Unknown word -> the known word that retrieval looked for as well.")


class SearchResult(PairRelevance):
    """One result of a search."""

    rank: int
    blended_score: float = Field(description="What results are ordered by: score and engagement.")
    engagement: float | None = Field(description="0..1; null: no impressions yet.")
    title: str
    text: str = Field(description="Start of what the pin says.")
    image_url: str | None
    locale: str | None
    matched_terms: dict[str, list[str]] = Field(description="Field -> the query's words in it.")
    sources: list[str] = Field(description="Retrieved by: bm25, dense.")
    teacher_score: float | None = Field(description="Expected grade by the teacher, if it has graded this pair.")


class SearchResponse(BaseModel):
    """Results, best first."""

    release: str
    student: str
    query: Understanding
    results: list[SearchResult]
    num_candidates: int
    degraded: bool
    took_ms: float


class RelatedPin(BaseModel):
    """A pin near another one."""

    pin_id: str
    cosine: float
    title: str
    image_url: str | None
    locale: str | None


class RelatedResponse(BaseModel):
    """Nearest pins, nearest first, without the pin itself."""

    release: str
    pin_id: str
    results: list[RelatedPin]


class BoardRequest(Body):
    """A board: its title, its pins, or both."""

    title: Annotated[str, Field(max_length=2_000)] = ""
    pin_ids: Annotated[list[PinId], Field(max_length=10_000)] = []


class BoardResponse(BaseModel):
    """A board in the space of queries and pins."""

    student: str
    dim: int
    embedding: list[float]
    num_pins: int = Field(description="Pins that went into it.")
    unknown_pin_ids: list[str]


class About(BaseModel):
    """Description of the served release, for the page."""

    release: str
    student: str
    num_pins: int
    dim: int
    backend: str = Field(description="What embeds the queries.")
    locales: list[str] = Field(description="Of the pins, most frequent first.")
    examples: list[str] = Field(description="Queries to try.")


class ErrorBody(BaseModel):
    """Every error's body."""

    error: str = Field(description="A code, such as too_long or overloaded.")
    message: str = Field(description="What is wrong and what to do.")

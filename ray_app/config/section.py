"""What every section of the configuration is."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

TEXT_FIELDS = ("title", "description", "caption", "link_text", "board_titles", "engaged_queries")
TextField = Literal["title", "description", "caption", "link_text", "board_titles", "engaged_queries"]


class Section(BaseModel):
    """Base of every config section: frozen, and a typo is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def must_be_written_as_a_date(value: Any) -> Any:
    """Refuse numbers: 20240131 would be seconds since 1970."""
    if value is not None and (isinstance(value, int | float) or "-" not in str(value)):
        raise ValueError(f"write a date such as 2024-01-31, not {value!r}")
    return value


def in_utc(value: datetime | None) -> datetime | None:
    """In UTC, which a time without a zone is."""
    if value is None:
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

"""Base class and field types of the config sections."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

TEXT_FIELDS = ("title", "description", "caption", "link_text", "board_titles", "engaged_queries")
TextField = Literal["title", "description", "caption", "link_text", "board_titles", "engaged_queries"]


def _without_remote_code(args: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments unchanged; refuse any, at any depth, that runs code that comes with a model."""
    waiting: list[Any] = [args]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if any(str(name).replace("-", "_") == "trust_remote_code" for name in value):
                raise ValueError(
                    "trust_remote_code is always false and cannot be set; use a model that needs no code of its own"
                )
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return args


EngineArgs = Annotated[dict[str, Any], AfterValidator(_without_remote_code)]
"""Further arguments of the vllm engine."""


class Section(BaseModel):
    """Base of every config section: frozen, and a typo is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


def must_be_written_as_a_date(value: Any) -> Any:
    """Refuse numbers: 20240131 would be seconds since 1970."""
    if value is not None and (isinstance(value, int | float) or "-" not in str(value)):
        raise ValueError(f"write a date such as 2024-01-31, not {value!r}")
    return value


def in_utc(value: datetime | None) -> datetime | None:
    """Convert to UTC; a time without a zone is UTC already."""
    if value is None:
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

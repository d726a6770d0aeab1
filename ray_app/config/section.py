"""What every section of the configuration is."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

TEXT_FIELDS = ("title", "description", "caption", "link_text", "board_titles", "engaged_queries")
TextField = Literal["title", "description", "caption", "link_text", "board_titles", "engaged_queries"]


class Section(BaseModel):
    """Base of every config section: frozen, and a typo is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

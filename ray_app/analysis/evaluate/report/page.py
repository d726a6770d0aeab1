"""Parts that the report's and the comparison's HTML share: the template environment, and the writing of metrics."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_app.analysis.evaluate.report import summary

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_TEXT = 160  # characters of a query or title
DASH = "\N{EN DASH}"


def environment() -> "Environment":
    """Templates of this folder. All text from outside is escaped; a name that is not given is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    env.filters["figure"] = number
    env.filters["count"] = lambda value: DASH if value is None else f"{value:,}"
    env.filters["signed"] = summary.signed
    env.filters["cut"] = lambda text: text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
    env.filters["gain"] = lambda interval: cell(interval, with_sign=True)
    env.filters["plainly"] = cell
    env.filters["chance"] = p_value
    env.filters["brief"] = lambda value: value[:12] if isinstance(value, str) else value
    env.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return env


def number(value: float | None, digits: int = 3) -> str:
    """A figure for a table; a dash where it is undefined."""
    return DASH if value is None else f"{value:,.{digits}f}"


def cell(interval: Sequence[float | None], with_sign: bool = False) -> dict[str, Any]:
    """Make the content of a table's cell from (value, lo, hi): the value, its bounds, and whether they lie above zero."""
    value, lo, hi = interval
    write = summary.signed if with_sign else number
    if value is None:
        return {"text": DASH, "bounds": "", "above": False}
    if lo is None or hi is None:
        return {"text": write(value), "bounds": "", "above": False}
    glue = " to " if with_sign else DASH
    return {"text": write(value), "bounds": f"{write(lo)}{glue}{write(hi)}", "above": lo > 0}


def p_value(p: float | None) -> str:
    """Three decimals, or `<.001`."""
    if p is None:
        return DASH
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")

"""What ranked rows say of each pin, as lists."""

from collections.abc import Iterable


def lists_by_pin(pin_ids: Iterable[str], values: Iterable[str], most: int) -> dict[str, list[str]]:
    """The first `most` values of each pin, in the order of the rows."""
    found: dict[str, list[str]] = {}
    for pin_id, value in zip(pin_ids, values, strict=True):
        of_pin = found.setdefault(pin_id, [])
        if len(of_pin) < most:
            of_pin.append(value)
    return found

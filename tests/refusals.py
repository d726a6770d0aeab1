"""What people are told where something is refused."""

import pytest

from ray_app.base.errors import UserError


def message(act, error=UserError):
    """The text of the error that `act` raises: one line."""
    with pytest.raises(error) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)

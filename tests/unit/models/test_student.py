"""The student as a scorer of pairs."""

from types import SimpleNamespace

import numpy as np
import pytest

from ray_app.base.errors import UserError
from ray_app.models.head import FeatureScaler
from ray_app.models.student import Student


def test_features_of_another_version_are_refused_and_not_mixed_up() -> None:
    """A release outlives an upgrade of the program."""
    student = object.__new__(Student)
    student.model = SimpleNamespace(scaler=FeatureScaler(np.zeros(7), np.ones(7)))  # type: ignore[assignment]
    nothing = np.zeros((2, 0), np.float32)
    with pytest.raises(UserError, match=r"trained on 7 features .* makes 8: run `distill`"):
        student.score(nothing, nothing, np.zeros((2, 8), np.float32), None)
    student.require_width(7)

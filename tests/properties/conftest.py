"""Few examples, the same each time, unless HYPOTHESIS_PROFILE=long asks for many new ones."""

import os

from hypothesis import HealthCheck, settings

# The machine may be busy.
_SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
settings.register_profile("short", max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=_SLOW, stateful_step_count=12)  # fmt: skip
settings.register_profile("long", max_examples=2000, deadline=None, suppress_health_check=_SLOW, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

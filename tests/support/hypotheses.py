"""Settings of Hypothesis: the same examples every time, and no time limit for them."""

from hypothesis import HealthCheck, settings

QUICK = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

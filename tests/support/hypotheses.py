"""How Hypothesis is used here: the same examples every time, and no judgement of how long they take."""

from hypothesis import HealthCheck, settings

QUICK = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

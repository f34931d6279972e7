"""What all tests share: how Hypothesis runs. Derandomised, so that a red run is red again."""

from hypothesis import settings

settings.register_profile("primeflowd", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("primeflowd")

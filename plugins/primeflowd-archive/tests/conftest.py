"""How Hypothesis runs: derandomised, so that a red run is red again."""

from hypothesis import settings

settings.register_profile("archive", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("archive")

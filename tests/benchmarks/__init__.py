"""What a callback costs: run with `python -m tests.benchmarks`.

pytest collects only the tests of the measuring instruments that lie here.
"""

"""What a callback costs: run with `python -m tests.benchmarks`. Not collected by pytest."""

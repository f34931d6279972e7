"""The parts of storage_conformance.py, one for each family of promises."""

"""Benchmarks of pysciml beside its peers: ``python -m benchmarks`` (see README.md here)."""

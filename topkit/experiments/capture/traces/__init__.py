"""Traces of engines and benchmarks as dumps: each sequence a sample. Imports what reads plain files."""

from topkit.experiments.capture.traces.kv_pages import keys_and_values
from topkit.experiments.capture.traces.workloads import blobs, workloads

__all__ = ["blobs", "keys_and_values", "workloads"]

"""Suites: YAML to a validated benchmark, and to the list of its trials."""

from tta_bench.suite.loader import LoadedSuite, config_problems, find, load, shipped
from tta_bench.suite.schema import MethodEntry, Suite

__all__ = ["LoadedSuite", "MethodEntry", "Suite", "config_problems", "find", "load", "shipped"]

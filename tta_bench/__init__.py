"""tta-bench: a benchmarking harness for test-time adaptation of image classifiers.

Importing this package imports nothing heavy: torch, timm and Ray are loaded by the modules that need them.
"""

__version__ = "0.1.0"

# Raised whenever a change of the harness itself can change a result: it is part of every trial's key.
NUMERICS_VERSION = 1

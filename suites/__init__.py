"""Shipped suites, one benchmark a YAML file; read them with ``tta-bench run NAME``."""

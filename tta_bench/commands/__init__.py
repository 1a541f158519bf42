"""One module for each subcommand of ``tta-bench``."""

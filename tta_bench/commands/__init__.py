"""One module for each subcommand of ``tta-bench``; ``prose`` and ``hyperparameters`` format what they print."""

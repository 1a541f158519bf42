"""One Grid of a report to terminal, Markdown, LaTeX, HTML and data files."""

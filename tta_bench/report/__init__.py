"""Tidy tables to what goes into a paper: terminal, page, LaTeX, Markdown, data and figures."""

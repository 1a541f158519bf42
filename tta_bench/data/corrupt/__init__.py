"""Corruptions of images: the published ones, and the small-image strengths on NumPy, SciPy and Pillow."""

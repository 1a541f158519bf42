"""Image corruptions: ImageNet-C's, and CIFAR-10-C's for small images on NumPy, SciPy and Pillow."""

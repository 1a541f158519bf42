"""Numbers to compare with, as ``tta_bench.reference``.

``published.csv`` holds published errors and accuracies, one a row, with the conditions that they were measured under;
``alexnet_errors.csv`` AlexNet's errors on ImageNet-C, which mean corruption errors are relative to.
"""

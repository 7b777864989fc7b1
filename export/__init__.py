"""The command ``python -m export``: a trained network without PyTorch."""

"""One benchmark an op, against what a PyTorch user would otherwise run."""

"""A learning-rate controller driven by the loss derivative."""

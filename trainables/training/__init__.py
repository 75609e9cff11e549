"""Training loop, loss, gradients and embedding."""

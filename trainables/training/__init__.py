"""The training loop and what it computes: the loss, its gradients, and embeddings."""

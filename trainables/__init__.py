"""Training of one dual encoder: trials, encoders, loss, loop, and the embeddings that selection reads."""

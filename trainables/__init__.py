"""Train one dual encoder: encoders, loss, loop, and the embeddings that selection reads."""

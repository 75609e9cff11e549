"""Corpora, stores of prepared clips, and batches for training."""

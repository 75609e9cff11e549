"""Corpora as published -> clips in Arrow shards -> batches."""

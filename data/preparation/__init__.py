"""Preparation of a store: build it from a corpus, verify it, and describe it."""

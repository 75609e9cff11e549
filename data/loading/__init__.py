"""Batches of (clip, caption) pairs from a store."""

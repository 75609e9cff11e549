"""Batches of (clip, caption) pairs or of clips, decoded from a store."""

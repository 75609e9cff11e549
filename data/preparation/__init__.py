"""Build a store from a corpus, check it, and describe it."""

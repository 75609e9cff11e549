"""Check and describe a store."""

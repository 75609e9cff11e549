"""Store of prepared clips: write splits, open them, and read them from a folder or an object store."""

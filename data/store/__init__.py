"""A store of prepared clips: write its splits, open them, and read them from a folder or an object store."""

"""Model soups of a pool: which trials can be averaged, which parts are kept, and how soups compare."""

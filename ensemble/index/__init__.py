"""Index of recordings: vectors of passages and moments on disk, and the search for the nearest ones."""

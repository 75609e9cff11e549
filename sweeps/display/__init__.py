"""Terminal output of a sweep."""

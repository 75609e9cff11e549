"""Ensembles: selection from the trials of a sweep, reports, challenge submissions and search."""

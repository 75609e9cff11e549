"""From the trials of a sweep to the ensemble that retrieves best."""

"""Candidates for an ensemble, their scores on a split, and the metrics of these."""

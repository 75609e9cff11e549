"""Scheduling of trials through Ray Tune: which trial starts next, and where."""

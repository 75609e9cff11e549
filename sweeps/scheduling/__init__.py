"""Run trials through Ray Tune: which starts next, and where."""

"""Sweeps: spaces of trials, and the command that runs them."""

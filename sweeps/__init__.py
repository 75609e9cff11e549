"""Spaces of trials, and the sweep that runs them."""

"""Prevent leakage from held-out splits into training: exclusions by source id, and detection of duplicate sounds."""

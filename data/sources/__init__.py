"""Readers of what corpora publish: downloads, archives, tables and audio files."""

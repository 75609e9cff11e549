"""Decoding of audio files in any format that libsndfile reads, as people have them."""

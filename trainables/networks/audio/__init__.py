"""The networks of audio encoders: torch modules, and the functions that build and restore them."""

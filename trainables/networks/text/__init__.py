"""The networks of text encoders: torch modules, and the functions that build and restore them."""

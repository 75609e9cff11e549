"""Networks of text encoders, with the functions that build and restore them."""

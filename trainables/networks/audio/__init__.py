"""Networks of audio encoders, with the functions that build and restore them."""

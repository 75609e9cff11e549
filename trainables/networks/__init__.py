"""The networks behind the encoders' configs: torch modules, imported where one is built."""

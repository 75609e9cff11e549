"""Challenge submissions: systems, their output files and metadata, and the check of the archive."""

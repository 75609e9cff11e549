"""Challenge submissions: systems, their output files and metadata, and the validation of the zip file."""

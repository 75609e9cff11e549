"""Pool of candidates: their scores on a split, and metrics of their ensembles."""

"""Record of a selected ensemble: ensemble.json, its HTML page, its terminal tables, and its run in MLflow."""

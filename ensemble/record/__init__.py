"""A selected ensemble as a record: ensemble.json, its page, its tables, and its run in MLflow."""

"""Records of trials: models and checkpoints in the run storage, embeddings, leases, the ledger in MLflow, and
ensemble.json.
"""

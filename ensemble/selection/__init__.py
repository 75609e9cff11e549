"""Select an ensemble from a pool of candidates, and judge the selection."""

"""Selection of an ensemble from a pool of candidates, and its evaluation by cross-validation and attribution."""

"""Planning of a sweep: its trials by stage, their estimated cost, and retrainings."""

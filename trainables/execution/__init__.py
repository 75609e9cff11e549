"""Execution of a training: in this process or on Ray Train's workers, with resources from a cluster."""

"""Run a training: in this process or on Ray Train's workers, with the resources of a cluster."""

"""Training: for now how a model is laid out over several processes."""

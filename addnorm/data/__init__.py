"""Data: where text comes from, what turns it into ids and back, and which ids a step sees."""

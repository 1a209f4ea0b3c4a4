"""A run from data to model."""

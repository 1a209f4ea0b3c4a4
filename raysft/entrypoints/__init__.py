"""Modules that a cluster runs as Ray jobs."""

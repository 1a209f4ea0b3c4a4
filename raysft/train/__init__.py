"""Training: networks, optimizers, the loop of one trial, and the worker groups that run it."""

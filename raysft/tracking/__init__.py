"""The curves of a run where people look at those of all their runs: TensorBoard, MLflow, Weights &
Biases.
"""

from raysft.tracking.trackers import Tracking

__all__ = ["Tracking"]

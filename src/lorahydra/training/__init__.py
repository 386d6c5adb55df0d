"""Training of adapters; knows nothing of scoring or tracking.

`train` takes a list of jobs (today each is trained on its own), so that several adapters can later share one pass
over the base model without any change for the callers.
"""

from lorahydra.training.engine import TrainedAdapter, TrainingJob, train
from lorahydra.training.trainer import OnMetrics

__all__ = ["OnMetrics", "TrainedAdapter", "TrainingJob", "train"]

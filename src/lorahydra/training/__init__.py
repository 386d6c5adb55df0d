"""Training of adapters; knows nothing of scoring or tracking.

`train` takes a list of jobs (today each is trained on its own), so that several adapters can later share one pass
over the base model without any change for the callers.
"""

from lorahydra.training.engine import train
from lorahydra.training.jobs import OnMetrics, TrainedAdapter, TrainingJob

__all__ = ["OnMetrics", "TrainedAdapter", "TrainingJob", "train"]

"""Training of adapters; does not depend on scoring or tracking.

`train` trains the adapters of a list of jobs one after the other, `train_pack` side by side in one pass over the base
model. Both give the same adapters.
"""

from lorahydra.training.engine import check_settings, train, train_pack
from lorahydra.training.jobs import OnMetrics, Race, Standing, TrainedAdapter, TrainingJob

__all__ = ["OnMetrics", "Race", "Standing", "TrainedAdapter", "TrainingJob", "check_settings", "train", "train_pack"]

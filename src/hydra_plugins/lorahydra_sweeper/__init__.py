"""Hydra plugin `hydra/sweeper=lorahydra`: Optuna studies that are stored, pruned, resumed and shared."""

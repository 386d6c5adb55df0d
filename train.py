"""Train and evaluate one LoRA adapter, or search for the best one with `-m`.

python train.py experiment=demo
python train.py model=smollm2_135m data=local data.train_file=my.jsonl lora.r=32
python train.py --help
"""

import hydra
from omegaconf import DictConfig

from lorahydra.cli.hydra_app import launch, run_task


@hydra.main(config_path="conf", config_name="config")
def main(tree: DictConfig) -> float | list[float]:
    """Run the trial that Hydra composed."""
    return run_task(tree)


if __name__ == "__main__":
    launch(main)

"""The setting of Nimitsurachat & Washington 2023 (arXiv 2307.12343), as its abstract gives it.

From the paper: encoded acoustic features are the input; randomly masked single timesteps are reconstructed;
fine-tuning regresses the intensity of each emotion on a small annotated sample; a baseline of identical
backbone starts from scratch; MAE and 4-class accuracy are reported, overall and per emotion.
Our own choices, which the abstract does not fix: everything else. Marked below where this file makes them.
"""

import ml_collections

from configs import quickstart


def get_config(corpus: str = "demo") -> ml_collections.ConfigDict:
    config = quickstart.get_config(corpus)
    config.pretrain.objective.statistics = 0.0
    config.pretrain.objective.span = 1
    config.pretrain.objective.ratio = 0.15  # own choice
    config.finetune.objective.head = "intensity"
    config.finetune.objective.loss = "l1"  # own choice: the loss that MAE measures
    config.finetune.objective.selection = "mae"  # own choice
    config.compare.strategies = ("full",)  # own choice
    return config

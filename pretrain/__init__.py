"""Pre-training of backbones: sources, recipes, schedules, the loop, checkpoints. `python -m pretrain --help`."""

"""The package's reader of .wandb files, under the name that tests know it by."""

from cotnet.engine.wandb_file import history, wandb_records

__all__ = ["history", "wandb_records"]

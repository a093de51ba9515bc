"""Hydra's sweeper interface to cotnet.sweeps; Hydra imports this file at every start, so it stays light."""

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

ConfigStore.instance().store(
    group="hydra/sweeper", name="trials", node={"_target_": "hydra_plugins.cotnet_trials.Trials"}, provider="cotnet"
)


class Trials(Sweeper):
    """What `--multirun` runs: a grid or a search, several trials at a time, with a ledger."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra knows when it starts."""
        self.given = hydra_context, task_function, config

    def sweep(self, arguments: Sequence[str]) -> None:
        """Run it and exit with its code; `arguments` are the overrides of the command line."""
        from cotnet.sweeps.command import Command

        raise SystemExit(Command(*self.given).run(arguments))

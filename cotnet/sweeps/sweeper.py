"""Hydra's sweeper interface to cotnet.sweeps. `cotnet.config` imports this at every start, so it stays light."""

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Trials(Sweeper):
    """What `--multirun` runs: a grid or a search, several trials at a time, with a ledger."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra knows when it starts."""
        self.given = hydra_context, task_function, config

    def sweep(self, arguments: Sequence[str]) -> None:
        """Run it and exit with its code; `arguments` are the overrides of the command line."""
        from cotnet.sweeps.command import Command

        raise SystemExit(Command(*self.given).run(arguments))


def register() -> None:
    """Make Hydra know it as `hydra/sweeper: trials`.

    Hydra looks a plugin up by a name that begins with hydra_plugins; the class itself may lie anywhere.
    """
    name = "hydra_plugins.cotnet.Trials"
    plugins = Plugins.instance()
    plugins.register(Trials)
    plugins.class_name_to_class[name] = Trials
    ConfigStore.instance().store(group="hydra/sweeper", name="trials", node={"_target_": name}, provider="cotnet")

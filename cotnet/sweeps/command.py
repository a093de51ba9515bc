"""From a `--multirun` command line, as Hydra hands it over, to a plan; and evaluations, which need no ledger."""

import inspect
import re
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from cotnet.config.build import typed
from cotnet.config.compose import CONF, Config, resolve
from cotnet.config.continuing import run_name
from cotnet.config.run_folder import print_sweep
from cotnet.engine.outside import first_process, started_outside
from cotnet.errors import INTERRUPTED, WRONG_INPUT, InputError, RunError
from cotnet.sweeps.export import export, wandb_sweep
from cotnet.sweeps.run import Batch, Plan, conduct
from cotnet.sweeps.space import Parameter, SweepSettings, grid, name_trials, quoted, read, read_space

OURS = r"[+~]*(output_dir=|sweep[=./])"  # overrides about the sweep, not for its trials
NOT_THEIRS = r"hydra(\.mode=|[./]launcher|[./]sweeper|\.sweep\.)"  # Hydra's overrides that are not for its trials


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the overrides of a sweep say."""

    settings: SweepSettings
    folder: Path
    shared: list[str]
    parameters: list[Parameter]


def request(
    config: DictConfig, arguments: Sequence[str], outputs: Path, compose: Callable[[list[str]], DictConfig]
) -> Request:
    """Read and check them; `config` is composed of those with one value, `compose` composes a trial.

    Raises InputError and Hydra's errors for settings, ranges and choices that do not exist.
    """
    if config.explain:
        raise InputError("explain=true explains one run; leave out --multirun")
    about = [argument for argument in arguments if re.match(OURS, argument)]
    if wrong := read(about)[1]:
        raise InputError(f"{wrong[0].key} is the sweep's own; give it one value")
    node = typing.cast(Config, OmegaConf.to_container(config.sweep, resolve=True))
    settings = typed(SweepSettings, node, "sweep")
    rest = [argument for argument in arguments if argument not in about]
    shared, parameters = read([*read_space(settings.space), *rest])
    if settings.search and not parameters:
        raise InputError(f"sweep.sampler={settings.sampler} has nothing to vary; fill sweep.space or add key=VALUES")
    if not settings.search:
        grid(parameters)  # refuses intervals
    for job in _samples(parameters):
        trial = compose([*shared, *job])
        with open_dict(trial):
            trial.pop("hydra", None)
        resolve(trial)
    named = [*(argument for argument in about if argument.startswith("sweep=")), *shared]
    folder = _folder(config, outputs, named, parameters)
    return Request(settings=settings, folder=folder, shared=shared, parameters=parameters)


def _samples(parameters: Sequence[Parameter]) -> list[list[str]]:
    """Trials that show each value of each setting once."""
    first = [parameter.options[0] for parameter in parameters]
    jobs = [first]
    for index, parameter in enumerate(parameters):
        jobs += [[*first[:index], option, *first[index + 1 :]] for option in parameter.options[1:]]
    return jobs


def _folder(config: DictConfig, outputs: Path, shared: Sequence[str], parameters: Sequence[Parameter]) -> Path:
    """`output_dir`, or a folder in `outputs` named by what the trials share and by what varies."""
    if config.output_dir is not None:
        return Path(str(config.output_dir))
    keys = "+".join(sorted(parameter.key for parameter in parameters))
    return outputs / run_name([*shared, *([f"over={keys}"] if keys else [])])


def wandb_file(path: Path, arguments: Sequence[str]) -> None:
    """Write the sweep of these overrides of train.py for W&B."""
    single = [a for a in arguments if not OverridesParser.create().parse_override(a).is_sweep_override()]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = hydra.compose("train", single)
        asked = request(config, arguments, Path("outputs"), lambda job: hydra.compose("train", job))
    export(path, wandb_sweep(asked.settings, asked.shared, asked.parameters, asked.folder))


class Command:
    """One `--multirun` command line."""

    def __init__(self, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def run(self, arguments: Sequence[str]) -> int:
        """Run it; the exit code."""
        if started_outside():
            if not first_process():  # one of several tasks says it
                return WRONG_INPUT
            raise InputError(
                "--multirun starts its runs itself, each with ranks of its own; start it once, without torchrun and "
                "with srun --ntasks=1, or let it submit its jobs with hydra/launcher=submitit_slurm"
            )
        if "sweep" not in self.config:
            return self._evaluate(arguments)
        loader = self.context.config_loader
        asked = request(self.config, arguments, self._outputs(), lambda job: loader.load_sweep_config(self.config, job))
        return conduct(
            Plan(
                settings=asked.settings,
                folder=asked.folder,
                program=Path(inspect.getsourcefile(inspect.unwrap(self.task)) or sys.argv[0]),
                flags=self._flags(),
                shared=asked.shared,
                parameters=asked.parameters,
                batch=None if self._on_this_machine() else self._launcher(asked.folder),
            )
        )

    def _evaluate(self, arguments: Sequence[str]) -> int:
        """One after the other, always anew: an evaluation has nothing to continue."""
        shared, parameters = read(argument for argument in arguments if not re.match(OURS, argument))
        folder = _folder(self.config, self._outputs(), shared, parameters)
        launch = self._launcher(folder)
        codes: dict[Path, int] = {}
        for trial in name_trials(grid(parameters), ()):
            place = folder / trial.name
            print(f"{place}:", flush=True)  # noqa: T201
            (codes[place],) = launch([[*shared, *trial.overrides, quoted("output_dir", place)]])
            if codes[place] == INTERRUPTED:
                return INTERRUPTED
        print_sweep(codes)
        return int(any(codes.values()))

    def _flags(self) -> list[str]:
        """The rest of the command line that a trial needs: --config-dir DIR, hydra.searchpath=..."""
        overrides = self.config.hydra.overrides
        words = sys.argv[1:]
        flags = [word for word in words if word not in ("--multirun", "-m", *overrides.task, *overrides.hydra)]
        return flags + [word for word in overrides.hydra if not re.match(NOT_THEIRS, word)]

    def _outputs(self) -> Path:
        return Path(str(self.config.hydra.sweep.dir))

    def _on_this_machine(self) -> bool:
        return str(self.config.hydra.launcher._target_).endswith(".BasicLauncher")

    def _launcher(self, folder: Path) -> Batch:
        """Hydra's launcher as a function of jobs."""
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(folder)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=self.task, config=self.config
        )
        launched = 0

        def launch(jobs: list[list[str]]) -> list[int]:
            nonlocal launched
            launched += len(jobs)
            try:
                returns = launcher.launch(jobs, initial_job_idx=launched - len(jobs))
            except RuntimeError as error:  # no such cluster here, or a job that was lost
                name = type(launcher).__name__
                raise RunError(
                    f"{name} gave up ({' '.join(str(error).split())[:200]}); the same command continues"
                ) from None
            return [_code(job) for job in returns]

        return launch


def _code(job: JobReturn) -> int:
    """The exit code of a launcher's job; one that raised is a bug, and none of the other jobs' business."""
    try:
        return int(job.return_value)
    except Exception:  # what the job raised, of whatever class: Hydra raises it here
        traceback.print_exc()
        return 1

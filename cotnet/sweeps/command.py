"""From a `--multirun` command line, as Hydra hands it over, to a sweep's plan; and evaluations, which need no ledger.

Programs import this module at every start, so it imports no torch.
"""

import inspect
import re
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from cotnet.config.build import shown, typed
from cotnet.config.compose import CONF, Config, own_config, resolve
from cotnet.config.continuing import run_name
from cotnet.engine.rank_environment import first_process, started_outside
from cotnet.errors import FAILED, INTERRUPTED, WRONG_INPUT, InputError, RunError
from cotnet.sweeps.results import print_evaluations
from cotnet.sweeps.space import Parameter, SweepPlan, SweepSettings, grid, name_trials, quoted, read, read_space

ABOUT_SWEEP = r"[+~]*(output_dir=|sweep[=./])"  # overrides that describe the sweep, not its trials
SWEEPER = "hydra_plugins.cotnet.TrialsSweeper"
NOT_FOR_TRIALS = r"hydra(\.mode=|[./]launcher|[./]sweeper|\.sweep\.)"  # Hydra's overrides that trials do not get


def register_sweeper(at_end: Callable[[Path], object]) -> None:
    """Let Hydra find the class that conf/hydra/sweeper/trials.yaml names: the name must begin with hydra_plugins, the
    class may lie anywhere. `at_end` gets the folder of a sweep that ends."""
    plugins = Plugins.instance()
    TrialsSweeper.at_end = staticmethod(at_end)
    plugins.register(TrialsSweeper)
    plugins.class_name_to_class[SWEEPER] = TrialsSweeper


def require_own_sweeper() -> None:
    """Raises InputError in a job of another sweeper: Hydra's own ends with exit code 0 after failed jobs."""
    sweeper = HydraConfig.get().sweeper._target_
    if HydraConfig.get().mode == RunMode.MULTIRUN and sweeper != SWEEPER:
        raise InputError(
            f"hydra/sweeper: {sweeper} keeps no ledger and loses exit codes; leave it out (sweep=grid, random or tpe)"
        )


def make_plan(
    config: DictConfig, arguments: Sequence[str], outputs: Path, compose: Callable[[list[str]], DictConfig]
) -> SweepPlan:
    """Read and check the overrides of a sweep. `config` is composed of those with one value, `compose` makes a trial's.
    Raises InputError and Hydra's errors for settings, ranges and choices that do not exist."""
    if config.explain:
        raise InputError("explain=true explains one run; leave out --multirun")
    about = [argument for argument in arguments if re.match(ABOUT_SWEEP, argument)]
    if wrong := read(about)[1]:
        raise InputError(f"{wrong[0].key} is the sweep's own; give it one value")
    settings = typed(SweepSettings, typing.cast(Config, OmegaConf.to_container(config.sweep, resolve=True)), "sweep")
    shared, parameters = read([*read_space(settings.space), *(a for a in arguments if a not in about)])
    if settings.search and not parameters:
        raise InputError(f"sweep.sampler={settings.sampler} has nothing to vary; fill sweep.space or add key=VALUES")
    if not settings.search:
        grid(parameters)  # raises for intervals
    first = [parameter.options[0] for parameter in parameters]
    jobs = [(*first[:i], option, *first[i + 1 :]) for i, p in enumerate(parameters) for option in p.options]
    for job in dict.fromkeys(jobs or [()]):  # every value of every setting once
        trial = compose([*shared, *job])
        resolve(OmegaConf.masked_copy(trial, [str(key) for key in trial if key != "hydra"]))
    folder = _folder(config, outputs, [*(a for a in about if a.startswith("sweep=")), *shared], parameters)
    return SweepPlan(settings=settings, folder=folder, shared=shared, parameters=parameters)


def compose_plan(arguments: Sequence[str]) -> SweepPlan:
    """The plan of overrides of train.py, outside of a program; errors as in `make_plan`."""
    single = [a for a in arguments if not OverridesParser.create().parse_override(a).is_sweep_override()]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = hydra.compose("train", single)
        return make_plan(config, arguments, Path("outputs"), lambda job: hydra.compose("train", job))


def _folder(config: DictConfig, outputs: Path, shared: Sequence[str], parameters: Sequence[Parameter]) -> Path:
    """`output_dir`, or a folder in `outputs` named by what the trials share and by what varies."""
    keys = "+".join(sorted(parameter.key for parameter in parameters))
    shared = [*own_config(OmegaConf.select(config, "hydra.job.config_name")), *shared]
    name = run_name([*shared, f"over={keys}"] if keys else shared)
    return outputs / name if config.output_dir is None else Path(str(config.output_dir))


class TrialsSweeper(Sweeper):
    """What `--multirun` runs: a grid or a search, several trials at a time, with a ledger."""

    at_end: Callable[[Path], object]

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        """`params`: `hydra.sweeper.params`, what varies or is set, by key; the command line goes before it."""
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra knows when it starts."""
        self.context, self.task, self.given = hydra_context, task_function, config

    def sweep(self, arguments: Sequence[str]) -> None:
        """Run the sweep of these overrides and exit with its code."""
        if started_outside():
            if not first_process():  # the first of several tasks prints the error
                raise SystemExit(WRONG_INPUT)
            raise InputError(
                "--multirun starts its runs itself, each with ranks of its own; start it once, without torchrun and "
                "with srun --ntasks=1, or let it submit its jobs with hydra/launcher=submitit_slurm"
            )
        arguments = [*_overrides(self.params), *arguments]
        raise SystemExit(self._train(arguments) if "sweep" in self.given else self._evaluate(arguments))

    def _train(self, arguments: Sequence[str]) -> int:
        from cotnet.sweeps.run import run_sweep  # imports torch, which takes seconds

        loader, hydra_config = self.context.config_loader, self.given.hydra
        outputs = Path(str(hydra_config.sweep.dir))
        plan = make_plan(self.given, arguments, outputs, lambda job: loader.load_sweep_config(self.given, job))
        program = Path(inspect.getsourcefile(inspect.unwrap(self.task)) or sys.argv[0])
        local = str(hydra_config.launcher._target_).endswith(".BasicLauncher")
        code = run_sweep(plan, program, flags=self._flags(), batch=None if local else self._launcher(plan.folder))
        self.at_end(plan.folder)
        return code

    def _evaluate(self, arguments: Sequence[str]) -> int:
        """Run evaluations one after the other, always anew: they have nothing to continue."""
        shared, parameters = read(argument for argument in arguments if not re.match(ABOUT_SWEEP, argument))
        folder = _folder(self.given, Path(str(self.given.hydra.sweep.dir)), shared, parameters)
        launch = self._launcher(folder)
        codes: dict[Path, int] = {}
        for trial in name_trials(grid(parameters), ()):
            place = folder / trial.name
            print(f"{place}:", flush=True)  # noqa: T201
            (codes[place],) = launch([[*shared, *trial.overrides, quoted("output_dir", place)]])
            if codes[place] == INTERRUPTED:
                return INTERRUPTED
        print_evaluations(codes)
        return int(any(codes.values()))

    def _flags(self) -> list[str]:
        """The rest of the command line that a trial needs: --config-dir DIR, hydra.searchpath=..."""
        overrides = self.given.hydra.overrides
        words = ("--multirun", "-m", *overrides.task, *overrides.hydra)
        flags = [word for word in sys.argv[1:] if word not in words]
        return flags + [word for word in overrides.hydra if not re.match(NOT_FOR_TRIALS, word)]

    def _launcher(self, folder: Path) -> Callable[[list[list[str]]], list[int]]:
        """Hydra's launcher as a function from jobs, each a list of overrides, to exit codes."""
        with open_dict(self.given):
            self.given.hydra.sweep.dir = str(folder)
        make = Plugins.instance().instantiate_launcher
        launcher = make(hydra_context=self.context, task_function=self.task, config=self.given)

        def launch(jobs: list[list[str]]) -> list[int]:
            try:
                returns = launcher.launch(jobs, initial_job_idx=0)
            except ImportError as error:
                needed = f"hydra/launcher needs {error.name}, which is not installed"
                raise InputError(f"{needed}; pip install 'cotnet[slurm]', or leave the launcher out") from None
            except RuntimeError as error:  # no such cluster here, or a job that was lost
                name, reason = type(launcher).__name__, " ".join(str(error).split())[:200]
                raise RunError(f"{name} gave up ({reason}); the same command continues") from None
            return [_code(job) for job in returns]

        return launch


def _overrides(params: object) -> list[str]:
    """`hydra.sweeper.params` as overrides. Raises InputError if it is no group, or holds what is about the sweep."""
    if not isinstance(params, Mapping | None):
        raise InputError(f"hydra.sweeper.params={shown(params)} must be a group, such as {{seed: '1,2'}}")
    overrides = [f"{key}={value}" for key, value in (params or {}).items()]
    if about := [override for override in overrides if re.match(ABOUT_SWEEP, override)]:
        raise InputError(f"hydra.sweeper.params: {about[0]} is about the sweep itself; set it outside of params")
    return overrides


def _code(job: JobReturn) -> int:
    """The exit code of a launcher's job. A job that raised has a bug; the other jobs go on."""
    try:
        return int(job.return_value)
    except Exception:  # Hydra raises here what the job raised, of any class
        traceback.print_exc()
        return FAILED

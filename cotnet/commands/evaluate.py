"""What evaluate.py runs: for each checkpoint complete the configuration from its own, then evaluate on every rank."""

import dataclasses
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import distributed as dist

from cotnet import image_parts, parts
from cotnet.commands import eval_exported, eval_logger, eval_look, eval_model, eval_report
from cotnet.commands.eval_sets import read_sets, unlabelled, words_of
from cotnet.commands.eval_worker import Job, Leaf, measure
from cotnet.commands.joining import joined, plain_errors
from cotnet.commands.tool_keys import check_own_keys
from cotnet.config import recipes, run_folder
from cotnet.config.build import convert, nearest, require_group, typed
from cotnet.config.claims import claimed
from cotnet.config.compose import Config
from cotnet.config.moves import stored_config
from cotnet.engine import checkpoints
from cotnet.engine.compilation import require_compiler
from cotnet.engine.determinism import set_variables
from cotnet.engine.evaluation import Interrupted
from cotnet.engine.gpus import require_usable_gpus
from cotnet.engine.launch import count_ranks, launch
from cotnet.engine.rank_environment import first_process
from cotnet.engine.signals import stop_request
from cotnet.errors import FAILED, INTERRUPTED, InputError
from cotnet.evaluate_settings import EvaluateSettings, EvaluationData
from cotnet.evaluation.predictions import require_parquet
from cotnet.evaluation.suites import EvaluationSet
from cotnet.models.weights import to_bytes
from cotnet.pages.folders import try_report
from cotnet.parts import check_keys
from cotnet.reporting.terminal import say
from cotnet.settings import DataSettings, LaunchSettings

GROUPS = ("backbone", "data", "loader", "logger", "suite", "launch", "average")
KEYS = {"plugins", *(field.name for field in fields(EvaluateSettings)), *GROUPS}


def run(config: Config) -> int:
    """Evaluates every checkpoint on every set at every size; the largest exit code."""
    set_variables(deterministic=True, gpu=torch.cuda.is_available())  # the same figures on any number of GPUs
    config, paths = checked(config)
    if is_dense(config, paths[0]):
        from cotnet.commands import eval_dense  # torchvision's detectors take a second to import

        return eval_dense.run(config, paths)
    folder, average = Path(config["output_dir"]), eval_model.average_images(config["average"])
    groups = [paths] if average else [[path] for path in paths]
    names = eval_model.short_names(paths) if len(groups) > 1 else [""]
    compared = len(groups) > 1 and config["images"] is None
    if compared and "csv" not in config["predictions"]:
        raise InputError("predictions: several checkpoints are compared by their predictions.csv; add csv")
    one, code = prepared(config, groups[0], average), 0  # before anything is written
    with claimed(folder):
        for number, (name, group) in enumerate(zip(names, groups, strict=True)):
            one = prepared(config, group, average) if number else one
            code = max(code, _evaluate(one, folder / name, average))
            if code == INTERRUPTED:
                return code
        if first_process() and compared:
            eval_report.compare_all(folder, names)
            _say_page(try_report(folder))
    return code


def is_dense(config: Config, path: Path) -> bool:
    """Whether a file is a detector's or segmenter's checkpoint, or `recipe` says that it holds published weights of
    one."""
    if config["recipe"] is not None:
        return True
    if eval_exported.is_exported(path):
        return False
    try:
        return parts.is_dense(stored_config(checkpoints.load(path)))
    except InputError:
        return False  # it is read again, for the error


def checked(config: Config) -> tuple[Config, list[Path]]:
    """The configuration and the checkpoints' files, after every check that needs no checkpoint.

    Raises:
        InputError: a setting is wrong, or a checkpoint does not exist.
    """
    require_usable_gpus()
    check_keys(config, KEYS)
    for key in ("data", "loader", "launch"):
        require_group(config[key], key)
    check_own_keys(config, EvaluateSettings, but=("precision", "checkpoint"))  # checked with the checkpoint
    for field in fields(DataSettings):
        if (value := config["data"].get(field.name)) is not None:
            several = int | tuple[int, ...] if field.name == "eval_size" else field.type
            convert(value, several, f"data.{field.name}")
    if config["images"] is not None:
        unlabelled(config["images"], classes=1)
    eval_model.average_images(config["average"])
    if "parquet" in config["predictions"]:
        require_parquet()
    eval_logger.logger_of(config)
    if (recipe := config["recipe"]) is not None and recipe not in recipes.names():
        raise InputError(f"recipe={recipe} is no experiment; {nearest(recipe, recipes.names())}")
    config = eval_model.separated(config)
    typed(EvaluationData, config["evaluation_data"], "data")
    count_ranks(typed(LaunchSettings, config["launch"], "launch").ranks)
    if config["compile"] not in ("auto", False):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        require_compiler(device, "compile", config["compile"])
    return config, eval_model.checkpoint_files(config["checkpoint"])


@dataclass(kw_only=True)
class Prepared:
    """A model that is read, checked and ready to be evaluated. `config`: completed."""

    read: eval_model.EvaluatedModel
    ranks: int
    sets: list[EvaluationSet]

    @property
    def config(self) -> Config:
        return self.read.config


def prepared(config: Config, group: list[Path], average: int | None) -> Prepared:
    """Reads a checkpoint, or several to average, and the images; writes nothing.

    Raises:
        InputError: the checkpoint, the images or a setting are wrong.
    """
    exported = [path for path in group if eval_exported.is_exported(path)]
    if exported and len(group) > 1:
        raise InputError(f"average: {exported[0]} is an exported graph, whose weights cannot be averaged; leave it out")
    read = eval_exported.read(config, group[0]) if exported else eval_model.read(config, group)
    ranks = count_ranks(typed(LaunchSettings, read.config["launch"], "launch").ranks)
    if average:
        image_parts.read_data(eval_model.data_settings(read.config))
    return Prepared(read=read, ranks=ranks, sets=read_sets(read.config, read.classes))


def _evaluate(one: Prepared, folder: Path, average: int | None) -> int:
    """Evaluates one model on its sets at its sizes; the exit code. What is done already is not done again."""
    config, read = one.config, one.read
    leaves = _leaves(one, folder)
    if first_process():
        for line in read.lines:
            say(line)
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_config(folder / "evaluation.yaml", {k: v for k, v in config.items() if k not in INTERNAL})
    left = [leaf for leaf in leaves if not (len(leaves) > 1 and eval_report.done(leaf))]
    job = Job(config=config, leaves=left, weights=to_bytes(read.model), classes=read.classes, average=average)
    del read.model
    code = launch(worker, job, one.ranks) if left else 0
    if code not in (0, FAILED):
        return code
    if first_process():
        eval_report.summarise(config, folder, leaves)
        for place in dict.fromkeys([*(Path(leaf.folder) for leaf in leaves), folder]):
            page = try_report(place)
        _log(one, [leaf for leaf in leaves if leaf in left or not eval_logger.is_logged(leaf)], folder)
        if read.better:
            say(f"in training its {read.better} weights were the better ones; add weights={read.better} for them")
        _say_page(page)
    return code


def _say_page(page: Path | None) -> None:
    if page:
        say(f"to look at it: {page}")


def _log(one: Prepared, leaves: list[Leaf], folder: Path) -> None:
    """Makes a W&B run of each evaluation of a model, if wanted."""
    if eval_logger.logger_of(one.config) is None:
        return
    config = {key: value for key, value in one.config.items() if key not in INTERNAL}
    images = {chosen.name: chosen.images.root for chosen in one.sets}
    names, trained = words_of(one.config, one.read.classes), one.read.trained
    group = eval_logger.group_of(config, folder, trained)
    for leaf in leaves:
        try:
            eval_logger.log_evaluation(config, leaf, images=images[leaf.set], names=names, trained=trained, group=group)
        except InputError as error:
            say(f"W&B: {leaf.folder} is not shown: {error}")


def _leaves(one: Prepared, folder: Path) -> list[Leaf]:
    """Each set at each size, with its folder."""
    data, sizes, found = eval_model.data_settings(one.config), one.config["sizes"], []
    for chosen in one.sets:
        for size in sizes:
            name = "/".join([chosen.name] * (len(one.sets) > 1) + [str(size)] * (len(sizes) > 1))
            inputs = {
                "weights_checksum": one.read.checksum,
                "image_set": chosen.images.fingerprint,
                "settings": eval_report.settings(one.config, dataclasses.replace(data, eval_size=size), chosen),
            }
            found.append(Leaf(set=chosen.name, size=size, folder=str(folder / name), inputs=inputs))
    return found


INTERNAL = ("evaluation_data", "sizes", "own_checkpoint", "exported")


def worker(job: Job, store: dist.Store | None) -> int:
    """One rank of the evaluation; its exit code."""
    config = job.config
    code, mistakes = 0, []
    with joined(config, store) as (ranks, stop):
        names = words_of(config, job.classes) if ranks.first else ((), ())
        try:
            for leaf, found in measure(job, ranks, stop):
                if found is not None:
                    code = max(code, eval_report.write(config, leaf, found, *names))
                    mistakes.append(eval_look.most_confident(leaf, found, count=config["look"]))
        except Interrupted:
            stop.forward = True
            return INTERRUPTED
    with stop_request() as stop, plain_errors(config):  # the ranks have parted: none waits for the pictures
        for one in mistakes:
            eval_look.draw_mistakes(config, one, words=names[1], stop=stop)
        stop.forward = stop.received
        return INTERRUPTED if stop.received else code

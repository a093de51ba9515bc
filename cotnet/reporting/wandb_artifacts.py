"""What a run logs as W&B artifacts: its checkpoints, of type `model`, and the code, of type `source`."""

from pathlib import Path
from typing import TYPE_CHECKING

from cotnet.engine.checkpoints import duplicate
from cotnet.reporting.environment import CODE
from cotnet.reporting.wandb_file import logged_artifacts, run_files

if TYPE_CHECKING:
    import wandb

CHECKPOINTS = {"best.pt": "best", "last.pt": "latest"}  # file -> alias; W&B calls the newest version `latest`


def log_checkpoints(run: "wandb.Run", folder: Path) -> None:
    """Logs best.pt, then last.pt, as versions of the artifact `model-ID`, where ID is the run's; leaves out a version
    that an offline start of the run holds already (a server knows by itself what it has).

    The artifact refers to a hard link in the start's own folder: a continued run replaces the checkpoint, not that.
    """
    import wandb

    held = logged_artifacts(run_files(folder, run.id))
    own = Path(run.settings.sync_file).parent / "checkpoints"
    own.mkdir(parents=True, exist_ok=True)
    for name, alias in CHECKPOINTS.items():
        if not (folder / "checkpoints" / name).exists():
            continue
        duplicate(folder / "checkpoints" / name, own / name)
        artifact = wandb.Artifact(f"model-{run.id}", "model")
        artifact.add_file(str(own / name), name=name, skip_cache=True, policy="immutable")
        if (artifact.name, artifact.digest) in held:
            (own / name).unlink()
        else:
            run.log_artifact(artifact, aliases=[alias])


def log_code(run: "wandb.Run") -> None:
    """Logs the application's code and configurations as the artifact `source-PROJECT`; W&B keeps equal files once."""
    import wandb

    artifact = wandb.Artifact(f"source-{run.project}", "source")
    folders = (CODE / name for name in ("cotnet", "data", "conf"))
    inside = (file for folder in folders for ending in ("py", "yaml") for file in folder.rglob(f"*.{ending}"))
    for file in sorted([CODE / "train.py", CODE / "evaluate.py", *inside]):
        artifact.add_file(str(file), name=str(file.relative_to(CODE)), skip_cache=True, policy="immutable")
    run.log_artifact(artifact)

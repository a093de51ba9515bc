"""A run's checkpoints as W&B artifacts of type `model`."""

from pathlib import Path
from typing import TYPE_CHECKING

from cotnet.engine.checkpoints import duplicate
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

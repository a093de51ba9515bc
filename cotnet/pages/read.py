"""Reading what runs and evaluations leave, quickly: a leaderboard reads hundreds of folders."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any, Final

import yaml

from cotnet.errors import InputError
from cotnet.files import in_use
from data.sets.image_set import thumbnail

SIDE: Final = 96  # pixels of a thumbnail
WIDE: Final = 900  # pixels of a picture that is shown large


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises InputError if it does not."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); mend or remove it") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object; mend or remove it")
    return content


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration that a run or an evaluation wrote. Raises InputError if it cannot be read."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(path.read_text(), Loader=loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); mend or remove it") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no settings; mend or remove it")
    return content


def backbone_of(config: dict[str, Any]) -> str:
    """The name of a configuration's backbone; empty without one."""
    node = config.get("backbone", {})
    return str(node.get("model_name") or node.get("_target_", "").rpartition(".")[2])


def status_of(folder: Path, summary: dict[str, Any]) -> str:
    """running, finished, interrupted, failed, or killed: its summary.json says that it runs, and no process does."""
    status = str(summary.get("status", "running"))
    return "killed" if status == "running" and not in_use(folder / ".lock") else status


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a heading; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def picture(path: Path, side: int = SIDE) -> str:
    """An image as a data URI, at most `side` pixels high and wide; empty if it cannot be read."""
    small = thumbnail(path, side)
    if small is None:
        return ""
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"

"""The page of a sweep, from its ledger and its trials' records."""

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cotnet.files import in_use
from cotnet.pages import charts
from cotnet.pages.blocks import (
    Block,
    Chart,
    Column,
    Command,
    DataTable,
    Page,
    PageSection,
    Remarks,
    Tile,
    Tiles,
    numbers,
    texts,
)
from cotnet.reporting.terminal import clock
from cotnet.sweeps.ledger import Ledger
from cotnet.sweeps.results import TrialResult, longer_command, rank_trials

LEAST: Final = 4  # finished trials, for the importance of settings


def sweep_page(folder: Path) -> Page:
    """The page of the sweep in `folder`. Raises InputError if its ledger is damaged."""
    ledger = Ledger.read(folder)
    rows, alive = rank_trials(ledger), in_use(folder / ".lock")
    target, scored = ledger.start["target"], [row for row in rows if row.value is not None]
    keys = list(dict.fromkeys(key for row in rows for key in row.entry.trial.settings))
    states = [row.entry.state for row in rows]
    tiles = [
        Tile(
            name="trials",
            value=f"{len(rows)}",
            note=f"{states.count('finished')} finished, {states.count('failed')} failed",
        )
    ]
    if scored:
        best = scored[0]
        tiles.append(
            Tile(
                name=f"best {target}",
                value=f"{best.value:.6g}",
                note=f"{best.entry.trial.name}, epoch {best.epoch:.4g}",
            )
        )
    result: list[Block] = [Tiles(tiles=tiles), trials(folder, target, keys, rows, alive=alive)]
    finished = [row for row in scored if row.entry.state == "finished"]
    if finished:
        result.append(Command(title="The best trial, longer", text=longer_command(ledger, finished[0].entry.trial)))
    sections = [
        PageSection(title="Result", blocks=result),
        PageSection(title="Settings", blocks=settings(ledger, keys, scored)),
    ]
    status = "running" if alive else "finished" if set(states) <= {"finished", "failed"} else "interrupted"
    return Page(title=f"Sweep {folder.absolute().name}", kind="sweep", status=status,
                sections=[one for one in sections if one.blocks], refresh=30 if alive else None)  # fmt: skip


def trials(folder: Path, target: str, keys: Sequence[str], rows: Sequence[TrialResult], *, alive: bool) -> DataTable:
    """A row per trial, the best first; a trial with a page links to it."""
    cells: list[list[Any]] = []
    numeric = {key for key in keys if all(_number(row.entry.trial.settings.get(key)) is not None for row in rows)}
    for row in rows:
        entry = row.entry
        state = ("running" if alive else "killed") if entry.state == "started" else entry.state
        given = [entry.trial.settings.get(key, "-") for key in keys]
        values = [_number(value) if key in numeric else value for key, value in zip(keys, given, strict=True)]
        cells.append([entry.trial.name, row.value, row.epoch, *values, clock(entry.seconds), state, entry.line])
    columns = [*texts("trial"), *numbers(".6g", target), *numbers(".4g", "epoch")]
    columns += [Column(heading=key, form=".6g" if key in numeric else "") for key in keys]
    columns += texts("time", "status", "error")
    links = [f"{row.entry.trial.name}/report.html" for row in rows]
    links = [link if (folder / link).exists() else "" for link in links]
    return DataTable(title="Trials", columns=columns, rows=cells, links=links)


def settings(ledger: Ledger, keys: Sequence[str], scored: Sequence[TrialResult]) -> list[Block]:
    """The target against each setting that varies, all of them together, and their importance."""
    target = ledger.start["target"]
    varied = [key for key in keys if len({row.entry.trial.settings.get(key) for row in scored}) > 1]
    blocks: list[Block] = []
    found = [(row.entry.trial.name, row.entry.trial.settings, float(row.value or 0.0)) for row in scored]
    for key in varied:
        values = [_number(given.get(key)) for _, given, _ in found]
        numeric = all(value is not None for value in values)
        points = [
            {"x": number if numeric else str(given.get(key, "-")), "y": value, "name": name}
            for number, (name, given, value) in zip(values, found, strict=True)
        ]
        known = [value for value in values if value is not None]
        log = numeric and min(known) > 0 and max(known) / min(known) > 20
        at = f"{key}={found[0][1].get(key, '-')}"
        alt = f"{target} against {key} in {len(points)} trials; the best, {found[0][2]:.6g}, has {at}."
        blocks.append(
            Chart(
                title=f"{target} against {key}", spec=charts.scatter(points, x=key, y=target, alt=alt, log=log), alt=alt
            )
        )
    if len(varied) > 1:
        rows = [
            (
                name,
                {
                    key: _number(given.get(key)) if _number(given.get(key)) is not None else str(given.get(key, "-"))
                    for key in varied
                },
                value,
            )
            for name, given, value in found
        ]
        alt = f"Parallel coordinates of {len(rows)} trials over {', '.join(varied)} and {target}."
        blocks.append(
            Chart(
                title="All settings together",
                spec=charts.parallel(rows, varied, target=target, alt=alt),
                alt=alt,
                wide=True,
            )
        )
        blocks += importance(ledger, varied, scored)
    return blocks


def importance(ledger: Ledger, keys: Sequence[str], scored: Sequence[TrialResult]) -> list[Block]:
    """How much of the target's variation each setting explains, by Optuna's fANOVA (Hutter et al. 2014)."""
    if len(scored) < LEAST:
        return [Remarks(title="Importance", lines=[f"Known from {LEAST} trials with a value on."])]
    try:
        import optuna
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    except ImportError:
        return [Remarks(title="Importance", lines=["optuna is not installed; pip install 'cotnet[sweep]'"])]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=ledger.start["direction"])
    texts = {key: sorted({row.entry.trial.settings.get(key, "-") for row in scored}) for key in keys}
    kinds = {key: _distribution(optuna.distributions, values) for key, values in texts.items()}
    for row in scored:
        given = {key: row.entry.trial.settings.get(key, "-") for key in keys}
        params = {key: value if _categorical(kinds[key]) else float(value) for key, value in given.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=row.value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
        except (ImportError, RuntimeError, ValueError) as error:  # scikit-learn is missing, or every value is the same
            return [Remarks(title="Importance", lines=[f"Not known: {error}"])]
    alt = "Share of the variation that each setting explains: " + ", ".join(
        f"{key} {value:.2f}" for key, value in found.items()
    )
    return [
        Chart(
            title="Importance of each setting",
            spec=charts.bars(list(found.items()), x="share explained", alt=alt),
            alt=alt,
        )
    ]


def _distribution(kinds: Any, values: Sequence[str]) -> Any:
    """The range of these values, or the list of them where one is no number."""
    numbers = [_number(value) for value in values]
    if any(number is None for number in numbers):
        return kinds.CategoricalDistribution(values)
    low, high = min(n for n in numbers if n is not None), max(n for n in numbers if n is not None)
    return kinds.FloatDistribution(low, high, log=low > 0 and high / low > 20)


def _categorical(kind: Any) -> bool:
    return type(kind).__name__ == "CategoricalDistribution"


def _number(text: Any) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        return float(text)
    return None

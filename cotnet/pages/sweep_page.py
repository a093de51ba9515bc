"""The page of a sweep, from its ledger and its trials' records."""

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
from cotnet.pages.write import REPORT
from cotnet.reporting.terminal import clock
from cotnet.sweeps.ledger import Ledger
from cotnet.sweeps.results import TrialResult, longer_command, rank_trials
from cotnet.sweeps.space import Trial

LEAST: Final = 4  # finished trials, for the importance of settings


def sweep_page(folder: Path) -> Page:
    """The page of the sweep in `folder`. Raises InputError if its ledger is damaged."""
    ledger = Ledger.read(folder)
    rows, alive = rank_trials(ledger), in_use(folder / ".lock")
    keys = list(dict.fromkeys(key for row in rows for key in row.entry.trial.settings))
    scored = [row for row in rows if row.value is not None]
    result: list[Block] = [headline(ledger, rows), trials(ledger, keys, rows, alive=alive)]
    if best := next((row.entry.trial for row in scored if row.entry.state == "finished"), None):
        result.append(Command(title="The best trial, longer", text=longer_command(ledger, best)))
    sections = [PageSection(title="Result", blocks=result)]
    if charts_of := settings(ledger, keys, scored):
        sections.append(PageSection(title="Settings", blocks=charts_of))
    ended = {row.entry.state for row in rows} <= {"finished", "failed"}
    status = "running" if alive else "finished" if ended else "interrupted"
    return Page(title=f"Sweep {folder.absolute().name}", kind="sweep", status=status, sections=sections)


def headline(ledger: Ledger, rows: Sequence[TrialResult]) -> Tiles:
    """How many trials there are, and the best one."""
    states, best = [row.entry.state for row in rows], rows[0] if rows else None
    counts = f"{states.count('finished')} finished, {states.count('failed')} failed"
    tiles = [Tile(name="trials", value=str(len(rows)), note=counts)]
    if best and best.value is not None:
        note = f"{best.entry.trial.name}, epoch {best.epoch:.4g}"
        tiles.append(Tile(name=f"best {ledger.start['target']}", value=f"{best.value:.6g}", note=note))
    return Tiles(tiles=tiles)


def trials(ledger: Ledger, keys: Sequence[str], rows: Sequence[TrialResult], *, alive: bool) -> DataTable:
    """A row per trial, the best first; a trial with a page links to it."""
    cells: list[list[Any]] = []
    links = [f"{row.entry.trial.name}/{REPORT}" for row in rows]
    for row in rows:
        entry = row.entry
        state = ("running" if alive else "killed") if entry.state == "started" else entry.state
        values = [value_of(entry.trial, key) for key in keys]
        cells.append([entry.trial.name, row.value, row.epoch, *values, clock(entry.seconds), state, entry.line])
    numeric = {key for key in keys if all(isinstance(value_of(row.entry.trial, key), float) for row in rows)}
    columns = [*texts("trial"), *numbers(".6g", ledger.start["target"]), *numbers(".4g", "epoch")]
    columns += [Column(heading=key, form=".6g" if key in numeric else "") for key in keys]
    columns += texts("time", "status", "error")
    links = [link if (ledger.folder / link).exists() else "" for link in links]
    return DataTable(title="Trials", columns=columns, rows=cells, links=links)


def value_of(trial: Trial, key: str) -> float | str:
    """A trial's setting, as a number if it is one."""
    text = trial.settings.get(key, "-")
    try:
        return float(text)
    except ValueError:
        return str(text)


def settings(ledger: Ledger, keys: Sequence[str], scored: Sequence[TrialResult]) -> list[Block]:
    """The target against each setting that varies, all of them together, and their importance."""
    target = ledger.start["target"]
    varied = [key for key in keys if len({value_of(row.entry.trial, key) for row in scored}) > 1]
    blocks: list[Block] = [against(target, key, scored) for key in varied]
    if len(varied) > 1:
        rows = [
            (row.entry.trial.name, {key: value_of(row.entry.trial, key) for key in varied}, float(row.value or 0.0))
            for row in scored
        ]
        alt = f"Parallel coordinates of {len(rows)} trials over {', '.join(varied)} and {target}."
        spec = charts.parallel(rows, varied, target=target, alt=alt)
        blocks.append(Chart(title="All settings together", spec=spec, alt=alt, wide=True))
        blocks += importance(ledger, varied, scored)
    return blocks


def against(target: str, key: str, scored: Sequence[TrialResult]) -> Chart:
    """The target against one setting, a point per trial."""
    values = [value_of(row.entry.trial, key) for row in scored]
    known = [value for value in values if isinstance(value, float)]
    numeric = len(known) == len(values)
    points = [
        {"x": value if numeric else str(value), "y": row.value, "name": row.entry.trial.name}
        for value, row in zip(values, scored, strict=True)
    ]
    log = numeric and min(known) > 0 and max(known) / min(known) > 20
    alt = f"{target} against {key} in {len(points)} trials; the best, {scored[0].value:.6g}, has {key}={values[0]}."
    spec = charts.scatter(points, x=key, y=target, alt=alt, log=log)
    return Chart(title=f"{target} against {key}", spec=spec, alt=alt)


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
    values = {key: [value_of(row.entry.trial, key) for row in scored] for key in keys}
    kinds = {key: distribution(optuna.distributions, found) for key, found in values.items()}
    for number, row in enumerate(scored):
        params = {key: found[number] if _numeric(found) else str(found[number]) for key, found in values.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=row.value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
        except (ImportError, RuntimeError, ValueError) as error:  # scikit-learn is missing, or every value is the same
            return [Remarks(title="Importance", lines=[f"Not known: {error}"])]
    shares = ", ".join(f"{key} {value:.2f}" for key, value in found.items())
    alt = f"Share of the variation that each setting explains: {shares}"
    spec = charts.bars(list(found.items()), x="share explained", alt=alt)
    return [Chart(title="Importance of each setting", spec=spec, alt=alt)]


def distribution(kinds: Any, values: Sequence[float | str]) -> Any:
    """Optuna's range of these values, or the list of them where one is a text."""
    known = [value for value in values if isinstance(value, float)]
    if not _numeric(values):
        return kinds.CategoricalDistribution(sorted({str(value) for value in values}))
    low, high = min(known), max(known)
    return kinds.FloatDistribution(low, high, log=low > 0 and high / low > 20)


def _numeric(values: Sequence[float | str]) -> bool:
    return all(isinstance(value, float) for value in values)

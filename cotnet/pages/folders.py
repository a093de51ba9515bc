"""Which pages a folder has, and writing them."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from cotnet.errors import InputError
from cotnet.files import SWEEP_LEDGER
from cotnet.pages.blocks import Page
from cotnet.pages.comparison_page import COMPARISON, comparison_page
from cotnet.pages.dense_page import dense_page
from cotnet.pages.evaluation_page import METRICS, evaluation_page
from cotnet.pages.read import read_json
from cotnet.pages.run_page import run_page
from cotnet.pages.sweep_page import sweep_page
from cotnet.pages.write import REPORT, require_extra, write_page
from cotnet.reporting.terminal import say

COMPARED: Final = "comparison.html"  # where the folder's report.html is another page
_said: set[str] = set()


def pages_of(folder: Path) -> dict[str, Callable[[], Page]]:
    """The pages of what lies in the folder itself, by file name; none if it holds no result."""
    found: dict[str, Callable[[], Page]] = {}
    if (folder / SWEEP_LEDGER).exists():
        found[REPORT] = lambda: sweep_page(folder)
    elif (folder / "metrics.jsonl").exists():
        found[REPORT] = lambda: run_page(folder)
    elif (folder / METRICS).exists():
        found[REPORT] = lambda: _evaluation(folder)
    if (folder / COMPARISON).exists():
        found[COMPARED if found else REPORT] = lambda: comparison_page(folder / COMPARISON)
    return found


def _evaluation(folder: Path) -> Page:
    content = read_json(folder / METRICS)
    return dense_page(folder, content) if "task" in content else evaluation_page(folder)


def write_reports(folder: Path) -> list[Path]:
    """Writes the pages of a folder; where they are. Raises InputError for a damaged file, for a page that cannot be
    written, and without the extra `report`."""
    pages = {folder / name: make() for name, make in pages_of(folder).items()}
    for path, page in pages.items():
        write_page(page, path)
    return list(pages)


def try_report(folder: Path) -> Path | None:
    """As `write_reports`, for programs whose result does not depend on a page; the last page. If it fails, a line says
    why, once."""
    try:
        require_extra()
        return next(reversed(write_reports(folder)), None)
    except InputError as error:
        line = f"no {REPORT}: {error}"
    # Whatever is wrong with a page, it must not end a training.
    except Exception as error:
        line = f"no {REPORT} ({type(error).__name__}: {error}); python -m cotnet.report {folder} shows the whole error"
    if line not in _said:
        _said.add(line)
        say(line)
    return None

"""A page as one HTML file that needs no network: styles, scripts, charts and pictures are inside.

Its content security policy forbids every request, so opening it cannot make one. The charts are drawn by Vega
(BSD-3), which vl-convert brings; making its script takes four seconds, so it is kept in the user's cache folder.
"""

import datetime
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cotnet.errors import InputError
from cotnet.files import write_atomic
from cotnet.pages.blocks import Page
from cotnet.records import finite

REPORT = "report.html"


def write_page(page: Page, path: Path) -> None:
    """Replaces `path` whole. Raises InputError without the extra `report`, or if the file cannot be written."""
    content = render(page).encode(errors="replace")  # a file's name may hold bytes that are no text
    try:
        write_atomic(path, content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; make room or change its permissions") from None


def render(page: Page) -> str:
    """The page as HTML; errors as in `vega`."""
    charts = any(block.kind == "chart" for section in page.sections for block in section.blocks)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return str(_template().render(page=page, vega=vega() if charts else "", now=now, finite=finite))


@cache
def _template() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise InputError("jinja2 is not installed; pip install 'cotnet[report]'") from None
    loader = PackageLoader("cotnet.pages", "assets")
    environment = Environment(
        autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html")


def require_extra() -> None:
    """Raises InputError without the extra `report`."""
    _version()
    _template()


def _version() -> str:
    try:
        return version("vl-convert-python")
    except PackageNotFoundError:
        raise InputError("vl-convert-python is not installed; pip install 'cotnet[report]'") from None


@cache
def vega() -> str:
    """The script that defines `vegaEmbed`. Raises InputError without the extra `report`."""
    kept = _cache_folder() / f"vega-{_version()}.js"
    try:
        return kept.read_text()
    except OSError:
        pass
    import vl_convert

    script = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")).replace("</script", "<\\/script")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, script.encode())
    except OSError:  # nothing is lost but four seconds next time
        pass
    return script


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cotnet"

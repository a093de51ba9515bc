"""An extra that is not installed is one line with what to install, wherever it is met."""

import sys

import pytest

from cotnet.config.build import target_of
from cotnet.dense import masks, metrics
from cotnet.errors import InputError
from cotnet.evaluation.predictions import require_parquet
from cotnet.pages import write
from cotnet.reporting.tensorboard_logger import TensorBoardLogger
from cotnet.sweeps import search


def timm():
    target_of({"_target_": "timm.optim.Lamb"}, "optimizer")


def dali():
    target_of({"_target_": "data.loading.dali.DaliLoader"}, "loader")


def figures():
    metrics.box_and_mask_figures({"images": [], "annotations": [], "categories": []}, [], masks=False)


@pytest.mark.parametrize(
    ("module", "use", "line"),
    [
        ("timm.optim", timm, r"timm\.optim.*; pip install 'cotnet\[timm\]'"),
        ("nvidia.dali", dali, r"nvidia\.dali.*; pip install 'cotnet\[cu13\]' \(cu12 .*\), or set loader=torchvision"),
        ("pyarrow", require_parquet, r"needs pyarrow; pip install 'cotnet\[parquet\]'"),
        ("faster_coco_eval", figures, r"faster-coco-eval is not installed; pip install 'cotnet\[dense\]'"),
        ("faster_coco_eval", masks.coco_tools, r"faster-coco-eval is .*; pip install 'cotnet\[dense\]'"),
        ("jinja2", write.require_extra, r"jinja2 is not installed; pip install 'cotnet\[report\]'"),
        ("optuna", search._optuna, r"optuna is not installed; pip install 'cotnet\[sweep\]' or sweep with sweep=grid"),
        ("tensorboard", TensorBoardLogger, r"needs the package tensorboard; pip install 'cotnet\[tensorboard\]'"),
    ],
)
def test_a_missing_extra_is_one_line(module, use, line, monkeypatch):
    write._template.cache_clear()
    monkeypatch.delitem(sys.modules, "data.loading.dali", raising=False)
    monkeypatch.setitem(sys.modules, module, None)  # Python then says that there is no such module
    with pytest.raises(InputError, match=line) as error:
        use()
    assert "\n" not in str(error.value)

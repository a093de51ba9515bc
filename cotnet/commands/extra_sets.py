"""The other test sets that a run is evaluated on while it trains, each on its own schedule."""

from typing import Any

from torch import nn

from cotnet import parts
from cotnet.config.compose import Config
from cotnet.engine.distributed import Ranks
from cotnet.errors import DataError, InputError
from cotnet.evaluation import suites
from cotnet.evaluation.run import predict
from cotnet.evaluation.statistics import percent
from cotnet.evaluation.suites import EvaluationSet
from cotnet.settings import Settings
from data.sets.image_set import ImageSet

NAMES = tuple(name for name in suites.SETS if name not in ("imagenet", "c"))  # c: 19 sets of 250,000 images


class ExtraSets:
    """`evaluation.extra`: the sets, found below `evaluation.root`.

    Raises:
        InputError: an unknown set, one that is not there, or a model of other classes.
    """

    def __init__(self, config: Config, settings: Settings, val: ImageSet) -> None:
        self._config, self._data = config, settings.data
        self._sets: list[tuple[int, EvaluationSet]] = []
        root, extra = settings.evaluation.root, settings.evaluation.extra or {}
        if root is not None and not root.is_dir():
            raise InputError(f"evaluation.root={root}: no such folder; give the one that holds the test sets")
        if extra and settings.data.num_classes != len(suites.synsets()):
            raise InputError(
                f"evaluation.extra is for ImageNet's 1,000 classes; data.num_classes={settings.data.num_classes}"
            )
        for name, every in extra.items():
            if name not in NAMES or every < 1:
                raise InputError(
                    f"evaluation.extra={{{name}: {every}}}: sets are {', '.join(NAMES)}, epochs at least 1"
                )
            labels = suites.labels_of_folders(val.root, val.classes, suites.synsets()) if name == "real" else None
            own = None if labels is None else suites.with_labels(val, labels)
            try:
                self._sets += [(every, one) for one in suites.evaluation_sets([name], root, own)]
            except DataError as error:
                raise InputError(f"evaluation.root: {error}") from None

    def due(self, done: float, *, last: bool) -> list[EvaluationSet]:
        """The sets to evaluate after `done` epochs."""
        return [one for every, one in self._sets if last or done % every == 0]

    def figures(
        self, chosen: EvaluationSet, models: dict[str, nn.Module], *, ranks: Ranks, **given: Any
    ) -> dict[str, dict[str, float]]:
        """Top-1 and top-5 of each model, as `NAME/top1`, on rank 0; collective. given: as for `evaluate`."""
        found: dict[str, dict[str, float]] = {name: {} for name in models}
        loader = parts.evaluation_loader(self._config, self._data, chosen.images, ranks, border=chosen.border)
        try:
            for name, model in models.items():
                result = predict(
                    model,
                    chosen,
                    loader,
                    missing={},
                    ranks=ranks,
                    classes=self._data.num_classes,
                    calibration=False,
                    **given,
                )
                if result is not None:
                    table = result[0]
                    found[name] = {
                        f"{chosen.name}/top1": percent(table.correct),
                        f"{chosen.name}/top5": percent(table.in_best),
                    }
        finally:
            loader.close()
        return found

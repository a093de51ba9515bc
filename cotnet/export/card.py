"""The model card: README.md with the metadata that hubs read, made from an evaluation of the same weights."""

from collections.abc import Mapping
from typing import Any

from cotnet.export.formats import require
from cotnet.export.graph import Preprocessing
from cotnet.models.spec import ModelSpec


def model_card(
    spec: ModelSpec,
    figures: Mapping[str, Any],
    *,
    preprocessing: Preprocessing,
    dataset: str,
    recipe: Mapping[str, Any],
    license: str,  # noqa: A002 - the metadata's own name
) -> str:
    """The text of a README.md.

    figures: the content of an evaluation's metrics.json. dataset: the name of the image set. recipe: settings of the
    training by their keys; empty if they are unknown. license: an identifier that hubs know, such as apache-2.0.

    Raises:
        InputError: huggingface_hub is missing.
    """
    require("huggingface_hub")
    from huggingface_hub import EvalResult, ModelCardData

    shared = {
        "task_type": "image-classification",
        "task_name": "Image Classification",
        "dataset_type": dataset,
        "dataset_name": dataset,
        "dataset_split": figures["set"],
    }
    results = [
        EvalResult(metric_type="accuracy", metric_name=name, metric_value=round(figures[key], 4), **shared)
        for key, name in (("top1", "Top-1 accuracy, %"), ("top5", "Top-5 accuracy, %"))
    ]
    data = ModelCardData(
        model_name=spec.name,
        license=license,
        library_name="cotnet",
        tags=["image-classification", "pytorch", spec.name],
        datasets=[dataset],
        metrics=["accuracy"],
        pipeline_tag="image-classification",
        eval_results=results,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_text(spec, figures, preprocessing, dataset, recipe)}"


def _text(
    spec: ModelSpec, figures: Mapping[str, Any], preprocessing: Preprocessing, dataset: str, recipe: Mapping[str, Any]
) -> str:
    used = figures["settings"]
    rows = [f"| {key} | {used[key]} |" for key in sorted(used)]
    trained = [f"| `{key}` | `{value}` |" for key, value in recipe.items()]
    ways = ", ".join(f"{key} {value}" for key, value in preprocessing.as_dict().items())
    lines = [
        f"# {spec.name}",
        "",
        f"An image classifier with {figures['parameters'] / 1e6:.2f} M parameters, trained on {dataset}.",
        "",
        "```python",
        "from cotnet.export import from_pretrained",
        'model = from_pretrained("FOLDER")  # of this file',
        "logits = model(images)  # (B, 3, H, W), prepared as below",
        "```",
        "",
        "## Accuracy",
        "",
        f"On {figures['images']:,} images of the set `{figures['set']}` of {dataset}; the intervals hold 95 %.",
        "",
        "| figure | value | interval |",
        "|---|---|---|",
        *(_figure(figures, key, name) for key, name in (("top1", "top-1, %"), ("top5", "top-5, %"))),
        "",
        "| evaluation setting | value |",
        "|---|---|",
        *rows,
        f"| weights | {figures['weights']} |",
        f"| checksum of the weights | {figures['weights_checksum']} |",
        "",
        "## Images",
        "",
        f"RGB, {ways}; mean and std are of values from 0 to 1.",
        "",
        "## Training",
        "",
        *(["| setting | value |", "|---|---|", *trained] if trained else ["The settings of its training are unknown."]),
    ]
    return "\n".join(lines) + "\n"


def _figure(figures: Mapping[str, Any], key: str, name: str) -> str:
    low, high = figures[f"{key}_interval"]
    return f"| {name} | {figures[key]:.2f} | {low:.2f} to {high:.2f} |"

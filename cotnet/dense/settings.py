"""The settings of detection and segmentation: `task`, `data` and `augmentation` of a dense configuration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cotnet.settings import RunSettings, Section, setting

Head = Literal["retinanet", "faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"]
Freeze = Literal[0, 1, 2, 3, 4, 5]
Norm = Literal["none", "bn"]
WEIGHTS = (
    "all weights to start from: a checkpoint of such a run, or a published file of detectron2, mmdetection or "
    "mmsegmentation; `backbone.weights` are of the backbone alone"
)
FREEZE = (
    "0: nothing; 1: the stem; 2: the stem and the first stage, and so on. What is frozen keeps its BatchNorm statistics"
)
NORM = "of the neck's and the heads' convolutions; `bn` is synchronised over ranks by `train.sync_bn`"


@dataclass(frozen=True, kw_only=True)
class DetectionTask(Section):
    """`task` of a detector."""

    head: Head = setting("what finds the objects")
    weights: Path | None = setting(WEIGHTS)
    freeze: Freeze = setting(FREEZE)
    norm: Norm = setting(NORM)
    channels: int = setting(
        "of the feature pyramid and of the heads' convolutions; linear layers have four times as many", least=8
    )
    anchor_sizes: tuple[int, ...] = setting(
        "side of the anchors of each level, in pixels, the finest level first", least=1
    )
    rois: int = setting(
        "boxes of an image that the second stage learns from, at most a quarter of them objects", least=4
    )
    box_head: Literal["2fc", "4conv1fc"] = setting(
        "of Faster R-CNN and its kin: two linear layers, or four convolutions and one linear layer"
    )
    box_loss: Literal["l1", "smooth_l1"] = setting("of the boxes; `smooth_l1` turns quadratic below 1/9")
    score_threshold: float = setting("detections below it are dropped", least=0, below=1)
    nms_threshold: float = setting("of two boxes of a class that overlap more, the better one stays", above=0, most=1)
    max_detections: int = setting("detections kept of an image", least=1)

    @property
    def masks(self) -> bool:
        """Whether the head predicts a mask for each object."""
        return "mask" in self.head


@dataclass(frozen=True, kw_only=True)
class SegmentationTask(Section):
    """`task` of a semantic segmentation network."""

    head: Literal["semantic_fpn"] = setting("what tells the class of each pixel")
    weights: Path | None = setting(WEIGHTS)
    freeze: Freeze = setting(FREEZE)
    norm: Norm = setting(NORM.replace("neck's and the heads'", "head's"))
    channels: int = setting("of the feature pyramid", least=8)
    head_channels: int = setting("of the head", least=8)
    dropout: float = setting("probability of zeroing a channel before the classifier", least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class DenseData(Section):
    """`data` of a dense configuration."""

    root: Path = setting("the folder of the image set")
    num_classes: int = setting("classes of the image set, without background", least=1)
    eval_short_side: int = setting("pixels of the shorter side in evaluation", least=16)
    eval_max_side: int = setting("pixels that the longer side may have in evaluation", least=16)
    eval_batch_size: int = setting(
        "images per rank and evaluation step; images of a batch are padded to one size, which can change figures",
        least=1,
    )
    mean: tuple[float, float, float] = setting("per channel, of images in [0, 1]")
    std: tuple[float, float, float] = setting("per channel, of images in [0, 1]", above=0)


@dataclass(frozen=True, kw_only=True)
class DenseAugmentation(Section):
    """`augmentation` of a dense configuration: the image is resized, mirrored, and cropped or padded to `crop`."""

    short_sides: tuple[int, ...] = setting("pixels of the shorter side, one is drawn for each image", least=16)
    between: bool = setting("draw any whole number from the smallest to the largest of `short_sides`, not one of them")
    max_side: int = setting("pixels that the longer side may have", least=16)
    jitter: tuple[float, float] = setting("the resized image is scaled by a factor drawn from this range", above=0)
    crop: int | None = setting("side of the square cut out at random, or padded to; null: the whole image", least=16)
    crop_max_share: float = setting(
        "segmentation: a crop in which one class has more of the pixels is drawn again, up to ten times",
        above=0,
        most=1,
    )
    flip: float = setting("probability of mirroring", least=0, most=1)
    photometric: bool = setting("change brightness, contrast, saturation and hue at random")
    aspect_group: int = setting(
        "so many images, one after the other, are all wide or all high, which saves padding; divides the batch", least=1
    )


@dataclass(frozen=True, kw_only=True)
class DenseSettings(RunSettings):
    """The typed sections of a detector's or segmenter's training configuration."""

    task: DetectionTask | SegmentationTask
    data: DenseData
    augmentation: DenseAugmentation

"""Models for other programs: ONNX, torch.export, AOTInductor, and folders that `from_pretrained` reads."""

from cotnet.export.hub import from_pretrained, save_pretrained
from cotnet.export.runtime import load_exported

__all__ = ["from_pretrained", "load_exported", "save_pretrained"]

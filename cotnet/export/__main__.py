"""Export a classifier: `python -m cotnet.export checkpoint=PATH format=onnx|pt2|aoti|safetensors|timm [key=value] ...`

Writes the file into a folder and compares it with PyTorch on real images. conf/export.yaml lists the keys.
"""

from cotnet.commands.program import Config, entry


@entry("export", outputs="outputs/export")
def main(config: Config) -> int:
    """Write a checkpoint's model in another format."""
    from cotnet.commands import export

    return export.run(config)


if __name__ == "__main__":
    main()

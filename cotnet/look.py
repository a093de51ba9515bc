"""See where a network looks: `python -m cotnet.look checkpoint=PATH images=FOLDER [key=value] ...`

Writes a PNG for each image: what the network sees, Grad-CAM of the predicted class, and for CoTNet the local kernels,
for BoTNet and PVT the attention, of one position. conf/look.yaml lists the keys.
"""

from cotnet.commands.program import Config, entry


@entry("look", outputs="outputs/look")
def main(config: Config) -> int:
    """Write a picture of where the network looks at each image."""
    from cotnet.commands import eval_look

    return eval_look.run(config)


if __name__ == "__main__":
    main()

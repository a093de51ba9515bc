"""Train a backbone: `python train.py [group=member] [key=value] ...` (conf/train.yaml lists them all)."""

from cotnet.commands.program import Config, entry


@entry("train", outputs="outputs")
def main(config: Config) -> int:
    """Train, or explain what would be trained."""
    from cotnet.commands import train

    return train.run(config)


if __name__ == "__main__":
    main()

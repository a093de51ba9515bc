"""Train a backbone: `python train.py [group=member] [key=value] ...` (conf/train.yaml lists them all)."""

from cotnet.config import Config, entry
from cotnet.sweeps.command import register_sweeper


@entry("train", outputs="outputs")
def main(config: Config) -> int:
    """Check everything that can be checked before a process starts, then train on every rank."""
    from cotnet import trainer  # torch with it, which --help need not wait for

    return trainer.run(config)


register_sweeper()

if __name__ == "__main__":
    main()

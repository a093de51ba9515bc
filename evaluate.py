"""Evaluate a checkpoint: `python evaluate.py checkpoint=PATH [key=value] ...` (conf/evaluate.yaml lists the keys)."""

from cotnet.commands.program import Config, entry


@entry("evaluate", outputs="outputs/evaluation")
def main(config: Config) -> int:
    """Evaluate a checkpoint or published weights on the val split."""
    from cotnet.commands import evaluate

    return evaluate.run(config)


if __name__ == "__main__":
    main()

"""python -m cotnet.models: the table of all backbones, with figures counted now."""

import sys

from cotnet.models.table import markdown

sys.stdout.write(markdown())

"""Image sets, loaders and augmentation."""

import cotnet.requirements  # noqa: F401 - first of all

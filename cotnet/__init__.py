"""CoTNet, BoTNet and PVT: models, operators, and the programs of a checkout."""

__version__ = "0.1.0"

import pytest

from cotnet import models


@pytest.fixture(scope="session")
def registered() -> list[str]:
    """The names that timm has got from us; once in a process."""
    return models.register_timm()

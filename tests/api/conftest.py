"""What tests of files share."""

import pytest

from tests.api.formats import ENDINGS


@pytest.fixture(params=ENDINGS)
def path(request, tmp_path):
    """The path of a checkpoint file in each of the formats."""
    return tmp_path / f"checkpoint{request.param}"

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastrlhf.device import simulated
from fastrlhf.device.ledger import Ledger


@pytest.fixture
def device() -> Iterator[Ledger]:
    """sim:0, registered, with books of its own."""
    with simulated.registered() as ledger:
        yield ledger

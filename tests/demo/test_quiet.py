import pytest
from transformers.utils import logging

from fastrlhf.demo.quiet import quiet_loading


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bars_are_off_inside_and_as_before_afterwards(shown):
    before = logging.is_progress_bar_enabled()
    try:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        with pytest.raises(ZeroDivisionError), quiet_loading():
            assert not logging.is_progress_bar_enabled()
            raise ZeroDivisionError
        assert logging.is_progress_bar_enabled() is shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()

"""Settings of all tests."""

import pytest
import torch

from tests.browser import headless_chromium


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread a test: the tensors are tiny, and threads that wait for each other cost more than they save."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def chromium():
    """One browser for all tests of pages."""
    with headless_chromium() as driver:
        yield driver

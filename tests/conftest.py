"""Settings of all tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread a test: the tensors are tiny, and threads that wait for each other cost more than they save."""
    torch.set_num_threads(1)

import copy

import pytest
import torch

from offset_equivariant.nn import check_equivariance, project_


def randomise_(module):
    """Give every parameter and running statistic another value than that of a fresh layer."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.2, 1, generator=generator)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2, generator=generator)
    project_(module)


@pytest.fixture(scope="session")
def randomised():
    """A function that returns a copy of a module with random parameters and running statistics."""

    def copy_of(module):
        module = copy.deepcopy(module)
        randomise_(module)
        return module

    return copy_of


@pytest.fixture(scope="session")
def assert_equivariant():
    """A function that checks a module, with arguments as check_equivariance, both fresh and with random parameters."""

    def check(module, *shapes, **arguments):
        for trained in (False, True):
            if trained:
                randomise_(module)
            report = check_equivariance(module, *shapes, **arguments)
            assert report.worst(torch.float64) <= 1e-12, f"\n{report}"
            assert report.equivariant, f"\n{report}"
            assert report.first_breaking is None

    return check

"""What a checkpoint decides, and what it leaves to the optimizer that loads it."""

import torch

import steepest


def test_numbers_come_from_the_checkpoint_and_the_backend_from_here():
    def optimizer(**options):
        return steepest.Lion([torch.nn.Parameter(torch.ones(3))], **options)

    loaded = optimizer(lr=1e-3, backend="single")
    loaded.load_state_dict(optimizer(lr=2e-3, betas=(0.8, 0.9), backend="compile").state_dict())
    group = loaded.param_groups[0]
    assert (group["lr"], group["betas"], group["backend"]) == (2e-3, (0.8, 0.9), "single")

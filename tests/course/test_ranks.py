"""Gradients of two processes: those through the wrapper are shared, those past it are each process's own."""

import torch
from torch import nn

from kdlib.course.ranks import step_inside, step_outside, two_ranks
from kdlib.losses.kd import kd_loss


def test_through_the_wrapper_both_hold_the_mean_and_past_it_each_its_own():
    inside, outside = two_ranks(step_inside, step_outside)
    own = []
    for rank in range(2):
        torch.manual_seed(0)
        student, teacher = nn.Linear(6, 4), nn.Linear(6, 4)
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(rank))
        kd_loss(student(inputs), teacher(inputs).detach(), None).backward()
        own.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
    assert torch.equal(inside[0], inside[1])
    torch.testing.assert_close(inside[0], (own[0] + own[1]) / 2)
    torch.testing.assert_close(outside, torch.stack(own))
    assert (own[0] - own[1]).norm() > 0.1 * own[0].norm()

"""Muon's steps are those of its definition, and it is given the matrices alone."""

import pytest
import torch
from torch import nn

from mmgen.training.muon import Muon, optimizers, orthogonal


@pytest.mark.parametrize("shape", [(64, 64), (64, 200), (200, 64)])
def test_orthogonal_keeps_directions_and_evens_out_their_lengths(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    lengths = torch.linalg.svdvals(orthogonal(matrix).float())
    assert lengths.min() > 0.5
    assert lengths.max() < 1.35
    assert ((u.T @ orthogonal(matrix).float() @ v.T).diagonal() > 0.5).all()


def test_orthogonal_of_nothing_is_nothing():
    assert not orthogonal(torch.zeros(64, 64)).any()


def test_a_kernel_moves_as_the_matrix_it_is_in_either_memory_format():
    start = torch.randn(64, 16, 3, 3, generator=torch.Generator().manual_seed(2))
    grad = torch.randn(64, 16, 3, 3, generator=torch.Generator().manual_seed(3))
    moved = []
    for shape, memory in (
        ((64, 144), torch.contiguous_format),
        ((64, 16, 3, 3), torch.contiguous_format),
        ((64, 16, 3, 3), torch.channels_last),
    ):
        weight = nn.Parameter(start.reshape(shape).clone(memory_format=memory))
        weight.grad = grad.reshape(shape).clone(memory_format=memory)
        Muon([weight], lr=0.1).step()
        moved.append(weight.detach().reshape(64, 144) - start.reshape(64, 144))
    assert moved[0].abs().max() > 0.01
    for other in moved[1:]:
        assert torch.allclose(moved[0], other, atol=0.02 * float(moved[0].abs().max()))


def test_a_first_step_is_as_large_as_adamw_takes():
    weight = nn.Parameter(torch.zeros(128, 512))
    weight.grad = torch.randn(128, 512, generator=torch.Generator().manual_seed(4))
    Muon([weight], lr=0.01, weight_decay=0).step()
    assert weight.detach().square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.2)
    assert (weight.detach() * weight.grad).sum() < 0


def test_matrices_are_muons_and_the_rest_is_adamws():
    network = nn.Sequential(nn.Conv2d(64, 64, 3), nn.LayerNorm(64), nn.Linear(64, 3))
    muon, adamw = optimizers(network, 1e-3)
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(network[0].weight)]
    assert len(adamw.param_groups[0]["params"]) == 5
    assert len(optimizers(nn.Linear(3, 3), 1e-3)) == 1

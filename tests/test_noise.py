"""Noise of activations: normal, and the same whoever draws it."""

from __future__ import annotations

import pytest
import torch

from dtp_lightning.learners.noise import LARGE, normal_like, tiled

SHAPES = [(10, 3, 8, 8), (LARGE // (32 * 16 * 16) + 3, 32, 16, 16)]  # one stream, several


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_for_any_number_of_threads(shape: tuple[int, ...], threads) -> None:
    like, drawn = torch.empty(shape).to(memory_format=torch.channels_last), []
    for number in (1, 2, 3):
        threads(number)
        torch.manual_seed(0)
        drawn.append((normal_like(like), torch.rand(1)))
    for noise, after in drawn:
        assert torch.equal(noise, drawn[0][0]) and torch.equal(after, drawn[0][1])
        assert noise.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(normal_like(like), drawn[0][0]), "fresh numbers each time"


def test_it_is_standard_normal_and_no_part_repeats() -> None:
    noise = normal_like(torch.empty(SHAPES[1])).flatten()
    assert abs(noise.mean()) < 5 / len(noise) ** 0.5 and abs(noise.std() - 1) < 5 / len(noise) ** 0.5
    parts = noise[: len(noise) // 4 * 4].view(4, -1)
    between = torch.corrcoef(parts) - torch.eye(4)
    assert between.abs().max() < 5 / parts.shape[1] ** 0.5


def test_rows_take_turns() -> None:
    assert tiled(torch.tensor([1, 2, 3]), 7).tolist() == [1, 2, 3, 1, 2, 3, 1]

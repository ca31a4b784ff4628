"""Views: an own draw for every image and view, the right law, the right range."""

from __future__ import annotations

import colorsys

import pytest
import torch
from conftest import composed, options

from dtp_lightning.augment import AffineColourViews
from dtp_lightning.augment.colour import random_saturation_hue
from dtp_lightning.augment.geometry import random_affine, random_flip
from dtp_lightning.config import build, checked
from dtp_lightning.data.images import ImageSpec

COLOUR, DIGITS = ImageSpec(3, 16, 16, True), ImageSpec(1, 16, 16, False)
AUGMENTS = options("augment")


def images(channels: int, batch: int = 4) -> torch.Tensor:
    return torch.randint(
        0, 256, (batch, channels, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("spec", [COLOUR, DIGITS], ids=["colour", "digits"])
@pytest.mark.parametrize("name", AUGMENTS)
def test_contract(name: str, spec: ImageSpec) -> None:
    augment = build(checked(composed(f"augment={name}")[0])["augment"], images=spec)
    same = images(spec.channels, 1).repeat(4, 1, 1, 1)
    torch.manual_seed(0)
    views = augment(same)
    assert views.shape == (2, 4, spec.channels, 16, 16)
    assert views.dtype == torch.float32
    assert views.min() >= 0 and views.max() <= 1 + 1e-6
    flat = views.flatten(0, 1)
    for i in range(8):
        for j in range(i):
            assert not torch.equal(flat[i], flat[j]), "identical images must get draws of their own"
    torch.manual_seed(0)
    assert torch.equal(views, augment(same)), "the seed decides"
    assert augment(same[:1]).shape[1] == 1


def test_nothing_happens_at_zero_strength() -> None:
    augment = AffineColourViews(COLOUR, affine=0, shift=0, flip=0, saturation=0, hue=0)
    batch = images(3)
    torch.testing.assert_close(augment(batch), (batch.float() / 255).expand(2, -1, -1, -1, -1), rtol=0, atol=1e-5)


def test_digits_are_neither_mirrored_nor_coloured() -> None:
    augment = AffineColourViews(DIGITS, affine=0, shift=0)
    batch = images(1)
    torch.testing.assert_close(augment(batch), (batch.float() / 255).expand(2, -1, -1, -1, -1), rtol=0, atol=1e-5)


def test_affine_law() -> None:
    """A ramp along x shows the map: slope 1 + u, u ~ U(-0.25, 0.25); offset ~ U(-0.5, 0.5) half-widths."""
    size, n = 33, 4000
    ramp = torch.linspace(-1, 1, size).expand(n, 1, size, size).contiguous()
    torch.manual_seed(0)
    warped = random_affine(ramp, 0.25, 0.5)
    centre = warped[:, 0, size // 2, size // 2]  # theta_13, never beyond the border
    slope = (warped[:, 0, size // 2, size // 2 + 4] - warped[:, 0, size // 2, size // 2 - 4]) / (8 * 2 / (size - 1))
    for drawn, middle, half in ((centre, 0.0, 0.5), (slope, 1.0, 0.25)):
        assert abs(drawn.mean() - middle) < 4 * half / (3 * n) ** 0.5
        assert half * 0.98 < (drawn - middle).abs().max() <= half * 1.001
        assert abs(drawn.std() - half / 3**0.5) < 0.03 * half


def test_border_is_padded_with_the_border() -> None:
    white = torch.ones(50, 1, 16, 16)
    torch.testing.assert_close(random_affine(white, 0.25, 0.5), white)


def test_flip_rate() -> None:
    batch = torch.arange(4.0).expand(4000, 1, 1, 4)
    torch.manual_seed(0)
    flipped = random_flip(batch, 0.25)[:, 0, 0, 0] == 3
    assert 0.22 < flipped.float().mean() < 0.28


def test_colour_agrees_with_colorsys() -> None:
    torch.manual_seed(0)
    batch = torch.rand(40, 3, 2, 2)
    batch[0] = 0.5  # grey
    batch[1, :, 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    state = torch.get_rng_state()
    jittered = random_saturation_hue(batch, 2.0, 0.1)
    torch.set_rng_state(state)
    factors = torch.empty(40, 1, 1).uniform_(-2, 2).exp2().flatten()
    shifts = torch.empty(40, 1, 1).uniform_(-0.1, 0.1).flatten()
    for image, result, factor, shift in zip(batch, jittered, factors, shifts, strict=True):
        for pixel, got in zip(image.flatten(1).T, result.flatten(1).T, strict=True):
            h, s, v = colorsys.rgb_to_hsv(*pixel.tolist())
            expected = colorsys.hsv_to_rgb((h + shift.item()) % 1, min(1, s * factor.item()), v)
            torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=2e-5)

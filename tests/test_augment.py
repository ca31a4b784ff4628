"""Views: an own draw for every image and view, the right law, the right range."""

from __future__ import annotations

import colorsys

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from conftest import composed, option, options
from torchvision.transforms.v2.functional import gaussian_blur

from dtp_lightning.augment import AffineColourViews, CropColourViews, MultiCropViews, SimCLRViews
from dtp_lightning.augment.colour import random_jitter, random_saturation_hue, random_solarise
from dtp_lightning.augment.geometry import random_affine, random_blur, random_flip, random_resized_crop
from dtp_lightning.config.instantiate import build
from dtp_lightning.config.schema import checked
from dtp_lightning.data.images import ImageSpec
from dtp_lightning.module import PretrainModule

COLOUR, DIGITS = ImageSpec(3, 16, 16, True), ImageSpec(1, 16, 16, False)
AUGMENTS = options("augment")


def images(channels: int, batch: int = 4) -> torch.Tensor:
    return torch.randint(
        0, 256, (batch, channels, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("spec", [COLOUR, DIGITS], ids=["colour", "digits"])
@pytest.mark.parametrize("name", AUGMENTS)
def test_contract(name: str, spec: ImageSpec) -> None:
    augment = build(option("augment", name), images=spec)
    same = images(spec.channels, 1).repeat(4, 1, 1, 1)
    torch.manual_seed(0)
    views = augment(same)
    assert views.shape == (augment.views, 4, spec.channels, 16, 16)
    assert views.dtype == torch.float32
    assert views.min() >= 0 and views.max() <= 1 + 1e-6
    untouched = 3 if name == "paper" and spec is DIGITS else 0  # half of each view is left as it is
    distinct = len(views.flatten(0, 1).unique(dim=0))
    assert distinct == (1 if name == "clean" else 4 * augment.views - untouched), (
        "identical images must get draws of their own"
    )
    torch.manual_seed(0)
    assert torch.equal(views, augment(same)), "the seed decides"
    assert augment(same[:1]).shape[1] == 1


@pytest.mark.parametrize("name", AUGMENTS)
def test_bf16_rounds_no_view(name: str) -> None:
    module = PretrainModule(torch.nn.Identity(), build(option("augment", name), images=COLOUR), seed=0)
    torch.manual_seed(0)
    expected = module.views(images(3))
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module.views(images(3)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["thesis", "paper", "simclr", "cifar"])
def test_one_view_for_supervised_losses(name: str) -> None:
    augment = build(checked(composed(f"augment={name}", "augment.views=1")[0]).augment, images=COLOUR)
    assert augment(images(3)).shape == (1, 4, 3, 16, 16)


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


def test_paper_warps_exactly_half_of_each_view_and_pads_with_zeros() -> None:
    augment = AffineColourViews(DIGITS, padding="zeros", deformed=0.5)
    white = torch.full((200, 1, 16, 16), 255, dtype=torch.uint8)
    torch.manual_seed(0)
    views = augment(white)
    black = (views == 0).flatten(2).any(-1)
    assert (black.sum(1) <= 100).all(), "at most half of each view can show zeros"
    assert (black.sum(1) > 80).all()
    assert not torch.equal(black[0], black[1]), "each view draws its own half"


def test_crop_law() -> None:
    """A ramp along x and one along y show the sides of the crop: its area is U(scale), its place anywhere inside."""
    size, n = 64, 4000
    x, y = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="xy")
    ramps = torch.stack([x, y]).expand(n, 2, size, size).contiguous()
    torch.manual_seed(0)
    crops = random_resized_crop(ramps, (0.2, 0.6), (3 / 4, 4 / 3))
    step = 2 / (size - 1)
    inner = slice(16, 48)  # away from the border, where interpolation is exact
    width = (crops[:, 0, 32, inner].diff(dim=-1) / step).mean(-1)
    height = (crops[:, 1, inner, 32].diff(dim=-1) / step).mean(-1)
    area = width * height
    assert area.min() > 0.195 and area.max() < 0.605
    assert abs(area.mean() - 0.4) < 0.01
    assert (width / height).min() > 0.74 and (width / height).max() < 1.35
    assert (crops.abs() <= 1).all()


def test_multi_crop_shows_much_in_two_views_and_little_in_the_others() -> None:
    """The range of a ramp in a crop is its width."""
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).expand(40, 1, 64, 64)
    augment = MultiCropViews(ImageSpec(1, 64, 64, False), ratio=(1, 1), blur=0, small=3)
    torch.manual_seed(0)
    rows = augment(ramp)[:, :, 0, 32]
    seen = rows.amax(-1) - rows.amin(-1)
    assert len(seen) == 5 and seen[:2].min() > seen[2:].max() > 0.14**0.5 - 0.06


def test_full_crop_changes_nothing() -> None:
    batch = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(random_resized_crop(batch, (1.0, 1.0), (1.0, 1.0)), batch)


def test_blur_keeps_the_mean_and_smooths() -> None:
    torch.manual_seed(0)
    batch = torch.rand(50, 3, 24, 24)
    torch.testing.assert_close(random_blur(batch, 0.0, (1.0, 2.0)), batch)
    blurred = random_blur(batch, 1.0, (1.0, 2.0))
    assert (blurred.var((-1, -2)) < 0.5 * batch.var((-1, -2))).all()
    torch.testing.assert_close(random_blur(torch.ones(2, 1, 8, 8), 1.0, (1.0, 2.0)), torch.ones(2, 1, 8, 8))
    some = (random_blur(batch, 0.5, (1.0, 2.0)) - batch).flatten(1).abs().amax(1) > 0.01
    assert 10 < some.sum() < 40


def test_blur_agrees_with_torchvision() -> None:
    batch = torch.rand(3, 3, 40, 40)  # 5 % of 40 is 2 pixels to each side
    expected = gaussian_blur(torch.nn.functional.pad(batch, (2,) * 4, mode="replicate"), 5, 1.5)[..., 2:-2, 2:-2]
    torch.testing.assert_close(random_blur(batch, 1.0, (1.5, 1.5)), expected, rtol=1e-4, atol=1e-5)


def test_jitter_agrees_with_torchvision() -> None:
    torch.manual_seed(0)
    batch = torch.rand(20, 3, 6, 6)
    state = torch.get_rng_state()
    jittered = random_jitter(batch, 0.4, 0.4, 0.4, 0.1)
    torch.set_rng_state(state)
    factors = [torch.empty(20).uniform_(0.6, 1.4) for _ in range(3)]
    shifts = torch.empty(20).uniform_(-0.1, 0.1)
    for i, image in enumerate(batch):
        expected = tv.adjust_contrast(tv.adjust_brightness(image, factors[0][i].item()), factors[1][i].item())
        expected = tv.adjust_hue(tv.adjust_saturation(expected, factors[2][i].item()), shifts[i].item())
        torch.testing.assert_close(jittered[i], expected, rtol=0, atol=2e-3)


def test_simclr_views_of_digits_are_neither_mirrored_nor_coloured() -> None:
    augment = SimCLRViews(DIGITS, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    batch = images(1)
    torch.testing.assert_close(augment(batch), (batch.float() / 255).expand(2, -1, -1, -1, -1), rtol=0, atol=1e-5)


def test_ranges_are_low_to_high() -> None:
    with pytest.raises(ValueError, match=r"scale must be given as \[low, high\]"):
        SimCLRViews(COLOUR, scale=(1.0, 0.1))


def test_border_is_padded_with_the_border() -> None:
    white = torch.ones(50, 1, 16, 16)
    torch.testing.assert_close(random_affine(white, 0.25, 0.5), white)


def test_flip_rate() -> None:
    batch = torch.arange(4.0).expand(4000, 1, 1, 4)
    torch.manual_seed(0)
    flipped = random_flip(batch, 0.25)[:, 0, 0, 0] == 3
    assert 0.22 < flipped.float().mean() < 0.28


def test_the_warp_mirrors() -> None:
    images = torch.rand(3, 2, 6, 7)
    torch.testing.assert_close(random_affine(images, 0, 0, flip=1), images.flip(-1))
    torch.testing.assert_close(random_affine(images, 0, 0), images)


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


def test_solarise_agrees_with_torchvision() -> None:
    """On every value of a byte, 128 and 127 among them."""
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, 3, 1, 1)
    solarised = random_solarise(pixels.float() / 255, torch.tensor([1.0, 0.0]))
    assert torch.equal(solarised.mul(255).round().to(torch.uint8)[0], tv.solarize(pixels[0], 128))
    assert torch.equal(solarised[1], pixels[1].float() / 255)


def test_solarise_of_one_view() -> None:
    augment = CropColourViews(COLOUR, scale=(1, 1), ratio=(1, 1), flip=0, jitter=0, grey=0, solarise=[0.0, 0.2])
    white = torch.full((4000, 3, 16, 16), 255, dtype=torch.uint8)
    torch.manual_seed(0)
    dark = augment(white).amax((2, 3, 4)) < 0.5
    assert not dark[0].any() and 0.18 < dark[1].float().mean() < 0.22


def test_cifar_views_agree_with_torchvision() -> None:
    """Full crops without mirroring: jitter, grey and solarisation by torchvision, on the same draws."""
    augment = CropColourViews(COLOUR, scale=(1, 1), ratio=(1, 1), flip=0, solarise=0.5)
    batch = images(3)
    torch.manual_seed(0)
    views = augment(batch).flatten(0, 1)
    torch.manual_seed(0)
    torch.rand(4, 8)  # the crops
    jittered = torch.rand(8) < 0.8
    brightness, contrast, saturation = (torch.empty(8).uniform_(1 - x, 1 + x) for x in (0.4, 0.4, 0.2))
    hue = torch.empty(8).uniform_(-0.1, 0.1)
    grey, solarised = torch.rand(8) < 0.2, torch.rand(8) < 0.5
    assert 0 < jittered.sum() < 8 and grey.sum() > 0 and 0 < solarised.sum() < 8
    for i, view in enumerate(views):
        x = batch[i % 4].float() / 255
        if jittered[i]:
            x = tv.adjust_contrast(tv.adjust_brightness(x, brightness[i].item()), contrast[i].item())
            x = tv.adjust_hue(tv.adjust_saturation(x, saturation[i].item()), hue[i].item())
        x = tv.rgb_to_grayscale(x, 3) if grey[i] else x
        expected = tv.solarize(x, 128 / 255) if solarised[i] else x
        near = (x - 128 / 255).abs() > 2e-3  # a rounding may put a value on the other side of the threshold
        torch.testing.assert_close(view[near], expected[near], rtol=0, atol=2e-3)


def test_one_probability_for_each_view() -> None:
    with pytest.raises(ValueError, match="solarise has 1 entries for 2 views"):
        CropColourViews(COLOUR, solarise=[0.1])

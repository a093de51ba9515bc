from dataclasses import replace

import numpy as np
import pytest
import torch
from augmenting import MEAN, NONE, STD, batch, transform
from photographs import photographs
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

from data.augmentation.operations import erase
from data.augmentation.transform import (
    ERASING_DRAWS,
    Transform,
    cutmix,
    cutmix_boxes,
    erasing_boxes,
    mix_targets,
    mixup,
    normalize,
)
from data.loading.random import Stream, uniforms


def test_normalize_is_torchvisions():
    images = batch()[0]
    expected = functional.normalize(images.float() / 255, list(MEAN), list(STD))
    torch.testing.assert_close(normalize(images, MEAN, STD, torch.float32), expected, atol=1e-6, rtol=1e-6)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    exact = (images.double() / 255 - mean) / std
    torch.testing.assert_close(normalize(images, MEAN, STD, torch.float64), exact, atol=1e-12, rtol=0)
    half = normalize(images, MEAN, STD, torch.bfloat16)
    assert torch.equal(half, normalize(images, MEAN, STD, torch.float32).bfloat16())


def test_without_augmentation_only_normalised():
    images, targets, indices = batch()
    found, same = transform(NONE)(images, targets, indices, 0)
    assert torch.equal(found, normalize(images, MEAN, STD, torch.float32))
    assert torch.equal(same, targets)


@pytest.mark.parametrize("mix_by", ["batch", "pair", "element"])
@pytest.mark.parametrize("which", ["mixup", "cutmix"])
def test_mixed_images_and_targets_tell_the_same_share(which, mix_by):
    """Images that are constant per sample: what each pixel says must agree with the targets."""
    indices = torch.arange(8)
    images = (indices * 30).to(torch.uint8)[:, None, None, None].expand(8, 3, 16, 16)
    mixing = Transform(
        replace(NONE, mix_by=mix_by, **{which: 1.0}),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        num_classes=8,
        seed=0,
        dtype=torch.float64,
    )
    shares = []
    for epoch in range(20):
        mixed, targets = mixing(images, indices, indices, epoch)
        torch.testing.assert_close(targets.sum(1), torch.ones(8, dtype=torch.float64))
        told = targets @ (indices.double() * 30 / 255)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), told, atol=1e-12, rtol=0)
        own = targets.diagonal()
        shares.append(own[0].item())
        assert torch.equal(own, own.flip(0)) == (mix_by != "element")
        assert bool((own == own[0]).all()) == (mix_by == "batch" or len(own.unique()) == 1)
        if which == "cutmix":
            assert all(len(image.unique()) <= 2 for image in mixed)
    assert 0.25 < np.mean(shares) < 0.75
    assert len(set(shares)) > 10


@pytest.mark.parametrize("fill", ["const", "rand", "pixel"])
def test_erasing_fills(fill):
    images, targets, indices = batch(side=64)
    pixels = normalize(images, MEAN, STD, torch.float32)
    erased, same = transform(replace(NONE, erasing=1.0, erasing_fill=fill))(images, targets, indices, 0)
    assert torch.equal(same, targets)
    for image, original in zip(erased, pixels, strict=True):
        changed = (image != original).any(0)
        rows, columns = changed.any(1).nonzero().ravel(), changed.any(0).nonzero().ravel()
        box = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        share = box[0].numel() / 64**2
        assert 0.015 < share < 0.35
        if fill == "const":
            assert not box.any()
        elif fill == "rand":
            assert len(box[0].unique()) == 1
            assert box[0, 0, 0] != box[1, 0, 0]
        else:
            assert abs(box.mean()) < 0.3
            assert box.std() == pytest.approx(1, abs=0.2)
    assert not torch.equal(erased[0], erased[1])


def test_a_sample_looks_the_same_in_any_batch_and_another_in_another_epoch():
    images, targets, indices = batch()
    augment = transform(replace(NONE, erasing=1.0, erasing_fill="pixel"))
    whole, _ = augment(images, targets, indices, 3)
    part, _ = augment(images[[4, 1]], targets[[4, 1]], indices[[4, 1]], 3)
    assert torch.equal(part, whole[[4, 1]])
    assert not torch.equal(augment(images, targets, indices, 4)[0], whole)
    other = transform(replace(NONE, erasing=1.0, erasing_fill="pixel"), seed=1)
    assert not torch.equal(other(images, targets, indices, 3)[0], whole)


def test_global_random_state_is_neither_used_nor_changed():
    images, targets, indices = batch()
    everything = transform(replace(NONE, mixup=0.8, cutmix=1.0, erasing=0.5, erasing_fill="pixel"))
    torch.manual_seed(0)
    first = everything(images, targets, indices, 0)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    second = everything(images, targets, indices, 0)
    assert all(torch.equal(mine, other) for mine, other in zip(first, second, strict=True))
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("change", [{"color_jitter": 0.4}, {"policy": "rand-timm-m9-n2-mstd0.5-inc1"}])
def test_uint8_augmentation_comes_before_normalisation_and_belongs_to_the_sample(change):
    images, targets, indices = batch()
    augment = transform(replace(NONE, **change))
    whole, _ = augment(images, targets, indices, 3)
    levels = whole * torch.tensor(STD)[:, None, None] * 255 + torch.tensor(MEAN)[:, None, None] * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert not torch.equal(levels.round().to(torch.uint8), images)
    part, _ = augment(images[[4, 1]], targets[[4, 1]], indices[[4, 1]], 3)
    assert torch.equal(part, whole[[4, 1]])


def test_colour_jitter_is_drawn_within_its_bounds():
    """Grey flat images: contrast and saturation do nothing, what is left is the brightness factor."""
    images = torch.full((400, 3, 4, 4), 100, dtype=torch.uint8)
    flat = Transform(
        replace(NONE, color_jitter=0.4), mean=(0, 0, 0), std=(1 / 255,) * 3, num_classes=2, seed=0, dtype=torch.float32
    )
    factors = flat(images, torch.zeros(400, dtype=torch.int64), torch.arange(400), 0)[0][:, 0, 0, 0] / 100
    assert factors.min() >= 0.58
    assert factors.max() <= 1.4
    assert factors.std() == pytest.approx(0.8 / 12**0.5, abs=0.02)


def test_mixing_ends_after_its_epochs():
    images, targets, indices = batch()
    ending = transform(replace(NONE, mixup=0.8, cutmix=1.0, mix_epochs=3))
    assert ending(images, targets, indices, 2)[1].shape == (6, 10)
    found, same = ending(images, targets, indices, 3)
    assert torch.equal(same, targets)
    assert torch.equal(found, normalize(images, MEAN, STD, torch.float32))


def test_elements_choose_between_mixup_and_cutmix_on_their_own():
    images, targets, indices = batch()
    pixels = normalize(images, MEAN, STD, torch.float32)
    both = transform(replace(NONE, mixup=1.0, cutmix=1.0, mix_by="element"))
    kinds = set()
    for epoch in range(20):
        mixed, _ = both(images, targets, indices, epoch)
        cut = ((mixed == pixels) | (mixed == pixels.flip(0))).flatten(1).all(1)
        expected = torch.from_numpy(uniforms(0, epoch, Stream.MIX, indices.numpy(), 1)[:, 0] < 0.5)
        assert torch.equal(cut, expected)
        kinds.add(int(cut.sum()))
    assert len(kinds) > 3


def test_vertical_flip_turns_the_share_it_says_upside_down():
    images = torch.arange(4, dtype=torch.uint8).view(1, 1, 4, 1).expand(2000, 3, 4, 2)
    turned = transform(replace(NONE, vertical_flip=0.3))
    found, _ = turned(images, torch.zeros(2000, dtype=torch.int64), torch.arange(2000), 1)
    plain = normalize(images, MEAN, STD, torch.float32)
    upside_down = (found == plain.flip(2)).flatten(1).all(1)
    assert (upside_down ^ (found == plain).flatten(1).all(1)).all()
    assert upside_down.float().mean() == pytest.approx(0.3, abs=0.03)
    images, targets, indices = batch()
    found, _ = transform(replace(NONE, vertical_flip=1.0))(images, targets, indices, 0)
    by_pil = [functional.pil_to_tensor(ImageOps.flip(image.resize((32, 32)))) for image in photographs()[:6]]
    assert torch.equal(found, normalize(torch.stack(by_pil), MEAN, STD, torch.float32))


def test_hue_is_drawn_evenly_and_alone():
    """Pure red, moved by at most a quarter of the circle: every hue there is as frequent, no other colour comes."""
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(4000, 3, 1, 1)
    moved = Transform(replace(NONE, hue=0.25), mean=(0, 0, 0), std=(1, 1, 1), num_classes=2, seed=0)
    pixels = moved(red, torch.zeros(4000, dtype=torch.int64), torch.arange(4000), 0)[0][:, :, 0, 0]
    hues = [
        int(Image.fromarray((p * 255).round().byte().numpy()[None, None]).convert("HSV").getpixel((0, 0))[0])
        for p in pixels
    ]
    signed = (np.array(hues) + 128) % 256 - 128
    assert signed.min() in (-63, -64)
    assert signed.max() in (63, 64)
    assert signed.std() == pytest.approx(0.5 * 255 / 12**0.5, rel=0.03)


def test_mixup_by_hand():
    images = torch.arange(3.0)[:, None, None, None].expand(3, 1, 2, 2)  # constant 0, 1, 2
    lam = torch.tensor([0.75, 0.75, 0.25])
    assert mixup(images, lam)[:, 0, 0, 0].tolist() == [0.5, 1.0, 0.5]
    expected = torch.tensor([[0.75, 0.0, 0.25], [0.0, 1.0, 0.0], [0.75, 0.0, 0.25]])
    torch.testing.assert_close(mix_targets(torch.tensor([0, 1, 2]), lam, num_classes=3), expected)


def test_cutmix_by_hand():
    images = torch.arange(2.0)[:, None, None, None].expand(2, 3, 3, 4)
    mixed = cutmix(images, torch.tensor([[1, 2, 2, 2], [0, 0, 0, 0]]), originals=images)
    box = torch.tensor([[0.0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).expand(3, 3, 4)
    assert torch.equal(mixed, torch.stack([box, torch.ones(3, 3, 4)]))
    assert torch.equal(images[0], torch.zeros(3, 3, 4)), "the given batch was changed"


def test_cutmix_boxes_by_hand():
    lam = np.array([0.75, 0.75, 1.0, 0.0])
    uniform = np.array([(0.5, 0.5), (0.0, 0.99), (0.5, 0.5), (0.5, 0.5)])
    boxes, shares = cutmix_boxes(lam, uniform, height=10, width=8)
    # Half of each side, 10 x 8: 5 // 2 = 2 and 4 // 2 = 2 around (5, 4); then cut at the border; then nothing and all.
    assert boxes.tolist() == [[3, 2, 4, 4], [0, 5, 2, 3], [5, 4, 0, 0], [0, 0, 10, 8]]
    assert shares.tolist() == pytest.approx([1 - 16 / 80, 1 - 6 / 80, 1.0, 0.0])


def test_erase_by_hand():
    images = torch.zeros(2, 1, 3, 4)
    values = torch.tensor([5.0, 7.0])[:, None, None, None]
    erased = erase(images, torch.tensor([[1, 1, 2, 2], [0, 0, 0, 0]]), values=values)
    assert erased[0, 0].tolist() == [[0, 0, 0, 0], [0, 5, 5, 0], [0, 5, 5, 0]]
    assert not erased[1].any()


def test_nothing_is_erased_at_probability_zero():
    uniform = uniforms(0, 0, Stream.ERASING, np.arange(50), ERASING_DRAWS)
    assert not erasing_boxes(0.0, uniform, height=32, width=32).any()

"""What a network looks at, against the definitions: Grad-CAM, CoT's kernels, attention."""

from functools import partial

import numpy as np
import pytest
import timm
import torch
from nets import build
from photographs import photograph, photographs
from PIL import Image, ImageOps
from test_real_weights import efficientnet
from torch.testing import assert_close

from cotnet import models
from cotnet.evaluation import look as looking
from cotnet.evaluation.look import NoFeatureMapError, cell, grad_cam, highest, look, mean_shifts, shares
from cotnet.evaluation.look_figure import draw, panels
from cotnet.models.contextual import CoTLayer
from cotnet.models.cotnet import coxt
from cotnet.models.pvt import SpatialReductionAttention
from cotnet.models.resnet import small_resnet
from cotnet.ops import local_aggregation


def pixels(side=64):
    """A real photograph, (3, S, S) uint8."""
    return torch.from_numpy(np.array(photograph(np.random.default_rng(1), side, side))).permute(2, 0, 1)


def image(side=64):
    """The same, normalised: (1, 3, S, S)."""
    return ((pixels(side) / 255 - 0.45) / 0.22)[None]


def passed(layer, model, given):
    """What a layer gets and gives while an image passes through its model."""
    seen = []
    with layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs, output))), torch.no_grad():
        model(given)
    return seen[0]


@pytest.mark.parametrize("name", ["resnet_small", "cotnet_small", "pvt_v2_b0"])
def test_grad_cam_of_a_linear_head_on_pooled_maps_is_the_class_activation_map(name):
    """Zhou et al., "Learning Deep Features for Discriminative Localization" (2016), equation 2: the head's weights of
    the class times the maps. The gradient of the average pool adds the factor 1 / (H W)."""
    model, given = build(name).eval(), image()
    with torch.no_grad():
        maps, logits = model.forward_stages(given)[-1][0], model(given)[0]
    head = model.head if name.startswith("pvt") else model.fc
    activations = torch.einsum("kc,chw->khw", head.weight, maps).relu().detach() / maps[0].numel()
    assert (activations.std((1, 2)) > 1e-4).sum() > 1
    for target in range(5):
        found, heat = grad_cam(model, given, target=target)
        assert_close(found, logits)
        assert_close(heat, activations[target])
    seen = look(model, given)
    assert seen.target == int(logits.argmax())
    assert_close(seen.heat, activations[seen.target])
    assert seen.probability == pytest.approx(float(logits.double().softmax(0).max()))


@pytest.mark.slow
def test_the_heat_moves_with_the_object(tmp_path):
    """ImageNet-trained weights; a small photograph (a cat, a cup of coffee) at the left and right of a grey image."""
    model = efficientnet(tmp_path / "weights.pth")
    for photo in photographs():
        small = torch.from_numpy(np.array(ImageOps.fit(photo, (120, 120)))).permute(2, 0, 1)
        centres, target = [], None
        for left in (0, 104):
            grey = torch.full((3, 224, 224), 127)
            grey[:, 52:172, left : left + 120] = small
            logits, heat = grad_cam(model, ((grey / 255 - 0.5) / 0.5)[None], target=target)
            target = int(logits.argmax()) if target is None else target
            columns = heat.sum(0) / heat.sum()
            centres.append(float((columns * (torch.arange(7) + 0.5) / 7).sum()))
        assert centres[0] < 0.35 and centres[1] > 0.45


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("blocks", [(0,), (0, 1)], ids=["strided", "last"])
def test_attention_of_botnet_times_values_is_the_layers_output(positions, blocks):
    """The strided block attends before it pools: its map is twice as large."""
    model = build("botnet50", image_size=64, positions=positions, c5=blocks).double().eval()
    layer = model.get_submodule(f"layer4.{blocks[-1]}.conv2")
    with torch.no_grad():
        layer.query.weight.mul_(100)  # as after training: far from an even attention
        layer.key.weight.mul_(100)
    (x,), output = passed(layer, model, image().double())
    with looking.recorded_attention(model) as found, torch.no_grad():
        model(image().double())
        value = layer.project(x)[2]
    (recorded,) = found.values()
    side = 4 if blocks == (0,) else 2
    assert recorded.size == recorded.key_size == (side, side) == tuple(x.shape[2:])
    attended = (recorded.weights @ value[0]).transpose(1, 2).flatten(0, 1).unflatten(1, (side, side))
    assert_close(attended, output[0], rtol=1e-5, atol=1e-6)
    assert_close(recorded.weights.sum(2), torch.ones(4, side * side, dtype=torch.float64))
    assert recorded.weights.std(2).mean() > 0.01
    shown = look(model, image().double(), position=(0.99, 0.0)).attention["stage 4"]
    assert_close(shown.flatten(), recorded.weights.mean(0)[(side - 1) * side].float())


def test_attention_of_pvt_times_values_is_the_layers_output():
    """Reduced keys in the second and third stage (R is 4 and 2); a class token in the last."""
    model = build("pvt_tiny", image_size=64).eval()
    layers = looking.last_layers(model, SpatialReductionAttention)
    assert {stage: layer.reduction for stage, layer in layers.items()} == {"stage 2": 4, "stage 3": 2, "stage 4": 1}
    with torch.no_grad():
        for layer in layers.values():
            layer.q.weight.mul_(30)
    with looking.recorded_attention(model) as found, torch.no_grad():
        model(image())
    sides = {"stage 2": (8, 2), "stage 3": (4, 2), "stage 4": (2, 2)}
    for stage, layer in layers.items():
        given, output = passed(layer, model, image())
        weights, (side, keys) = found[stage].weights, sides[stage]
        with torch.no_grad():
            attended = layer.proj((weights @ layer.project(*given)[2][0]).transpose(0, 1).flatten(1))
        assert_close(attended, output[0], rtol=1e-5, atol=1e-5)
        token = int(stage == "stage 4")
        assert weights.shape[1:] == (side**2 + token, keys**2 + token)
        assert_close(weights.sum(2), torch.ones(weights.shape[:2]))
        assert (found[stage].size, found[stage].key_size) == ((side, side), (keys, keys))
    seen = look(model, image(), position=(0.1, 0.99))
    mean = found["stage 4"].weights.mean(0)
    assert_close(seen.attention["stage 4, class token"].flatten(), mean[0, 1:])
    assert_close(seen.attention["stage 4"].flatten(), mean[1 + 1, 1:])
    assert_close(seen.attention["stage 2"].flatten(), found["stage 2"].weights.mean(0)[7])


def test_grad_cam_of_pvt_weights_the_map_that_the_class_token_reads():
    """By finite differences: where the last attention's input moves by the same vector in all positions, the logit
    moves by that vector times H W alpha; the vector is the map at one position."""
    model, given = build("pvt_tiny", image_size=64).double().eval(), image().double()
    layer = model.block4[-1].attn
    (tokens, _), _ = passed(layer, model, given)

    def logits(offset):
        with layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] + offset, inputs[1])), torch.no_grad():
            return model(given)[0]

    slopes = []
    for position in range(4):
        offset = torch.zeros_like(tokens)
        offset[0, 1:] = 1e-4 * tokens[0, 1 + position]
        slopes.append((logits(offset) - logits(-offset)) / 2e-4 / 4)
    expected = torch.stack(slopes).relu()  # (positions, classes)
    assert (expected > 1e-6).any()
    for target in range(5):
        assert_close(grad_cam(model, given, target=target)[1].flatten(), expected[:, target], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: build("cotnet_small"),
        lambda: small_resnet(coxt, 16, num_classes=5),
        lambda: build("cotnet50", kernel_size=5, dilation=2),
    ],
    ids=["CoTNet", "CoTNeXt, two groups", "kernels of 5, dilated"],
)
def test_kernels_of_cot_aggregate_the_values_to_the_dynamic_context(make):
    torch.manual_seed(0)
    model = make().eval()
    layers = looking.last_layers(model, CoTLayer)
    assert [*layers] == ["stage 2", "stage 3", "stage 4"]
    with looking.recorded_kernels(model) as found, torch.no_grad():
        model(image())
    for stage, layer in layers.items():
        (x,), _ = passed(layer, model, image())
        with torch.no_grad():
            expected = layer.attend(x, layer.key_embed(x))
            value = layer.conv1x1(x).unflatten(1, (layer.groups, -1)).flatten(0, 1)
            weight = found[stage].unflatten(0, (layer.groups, -1))
            context = local_aggregation(value, weight, dilation=layer.dilation).flatten(0, 1)[None]
            assert_close(layer.act(layer.bn(context)), expected, rtol=1e-5, atol=1e-5)
        shown = look(model, image()).kernels[stage]
        assert_close(shown.sum((0, 1)), torch.ones(shown.shape[2:]))
        assert shown.min() >= 0 and shown.std() > 0.001


def test_shares_and_shifts_by_hand():
    """A kernel that listens to its right neighbour and half as much, with the other sign, to the one above; nothing is
    beyond the border."""
    kernels = torch.zeros(2, 9, 3, 3)
    kernels[:, 5], kernels[:, 1] = 2.0, -1.0
    found = shares(kernels, 1)
    assert found[1, 2, 1, 1] == pytest.approx(2 / 3) and found[0, 1, 1, 1] == pytest.approx(1 / 3)
    assert found[1, 2, 0, 0] == 1  # the first row has none above
    assert found[0, 1, 2, 2] == 1  # the last column none at its right
    shifts = mean_shifts(found, 1)
    assert_close(shifts[:, 1, 1], torch.tensor([-1 / 3, 2 / 3]))
    even = mean_shifts(shares(torch.ones(1, 25, 6, 6), 2), 2)
    assert_close(even, torch.zeros(2, 6, 6))
    assert mean_shifts(shares(kernels.repeat(1, 1, 2, 2), 2), 2)[1, 2, 2] == pytest.approx(2 * 2 / 3)


def test_static_blocks_have_no_kernels():
    seen = look(build("cotnet_small", fusion="static").eval(), image(32))
    assert seen.kernels == {} and seen.heat.shape == (4, 4)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: models.torchvision_model(model_name="mobilenet_v3_small"), (2, 2)),
        (lambda: models.torchvision_model(model_name="densenet121"), (2, 2)),
        (lambda: models.torchvision_model(model_name="squeezenet1_1"), (3, 3)),
        (lambda: models.timm_model(model_name="resnet10t"), (2, 2)),
        (lambda: models.timm_model(model_name="convnext_atto"), (2, 2)),
        (models.resnet50, (2, 2)),
    ],
)
def test_any_network_with_a_last_feature_map(make, size):
    torch.manual_seed(0)
    seen = look(make().eval(), image(), target=7)
    assert seen.heat.shape == size and seen.heat.min() >= 0 and seen.target == 7
    assert (seen.kernels, seen.attention) == ({}, {})


@pytest.mark.parametrize(
    "make",
    [
        partial(timm.create_model, "vit_tiny_patch16_224", img_size=64, depth=2),
        partial(timm.create_model, "swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24),
        partial(torch.nn.Sequential, torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 10)),
    ],
    ids=["tokens", "channels last", "no map at all"],
)
def test_no_feature_map(make):
    side = 224 if "swin" in str(make) else 64
    with pytest.raises(NoFeatureMapError, match="no feature map for Grad-CAM") as caught:
        look(make().eval(), image(side))
    assert "\n" not in str(caught.value)


def test_positions():
    heat = torch.zeros(4, 8)
    assert highest(heat) == (0.5, 0.5)
    heat[3, 1] = 2
    assert highest(heat) == (0.875, 0.1875)
    assert cell(highest(heat), heat.shape) == (3, 1)
    assert (cell((0, 0), (7, 7)), cell((1, 1), (7, 7)), cell((0.5, 0.29), (7, 7))) == ((0, 0), (6, 6), (3, 2))


CAPTIONS = {
    "cotnet_small": [
        ["what the network sees", *(f"CoT, stage {stage}: listens towards" for stage in (2, 3, 4))],
        ["Grad-CAM: a cat", *(f"stage {stage}: kernel at the box, %" for stage in (2, 3, 4))],
    ],
    "botnet50": [["what the network sees", "Grad-CAM: a cat", "attention, stage 4, from the box"]],
    "pvt_tiny": [
        ["what the network sees", "Grad-CAM: a cat", "attention, stage 2, from the box"],
        ["attention, stage 3, from the box", "attention, stage 4, class token", "attention, stage 4, from the box"],
    ],
    "resnet_small": [["what the network sees", "Grad-CAM: a cat"]],
}


@pytest.mark.filterwarnings("ignore:Glyph")  # pytest undoes the filter of the program
@pytest.mark.parametrize("name", CAPTIONS)
def test_the_picture(name, tmp_path):
    """Each panel is there, under its caption, and none is blank; no sign in a title breaks it."""
    seen = look(build(name).eval(), image(), target=1)
    rows = panels(pixels().permute(1, 2, 0).numpy(), seen, name="a cat")
    nothing = "nothing speaks for a cat"
    captions = [[caption.partition(" (")[0].replace(nothing, "a cat") for caption, _ in row] for row in rows]
    assert captions == CAPTIONS[name]
    draw(tmp_path / "look.png", pixels(), seen, title="$x_1^ <b> 猫 " + "long " * 40, name="$\\frac$")
    with Image.open(tmp_path / "look.png") as png:
        drawn = np.asarray(png.convert("RGB")).astype(float)
    height, width = drawn.shape[0] / len(rows), drawn.shape[1] / len(rows[0])
    assert width == 200
    for row in range(len(rows)):
        for column in range(len(rows[0])):
            top, left = int((row + 0.4) * height), int((column + 0.1) * width)
            assert drawn[top : top + 80, left : left + 160].std((0, 1)).max() > 5
    shown = drawn[int(0.4 * height) : int(0.4 * height) + 60, 20:180].mean((0, 1))
    assert np.abs(shown - pixels()[:, 10:40].float().mean((1, 2)).numpy()).max() < 60  # in colours of the photograph

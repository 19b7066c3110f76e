"""Synthetic images: the network sees in them what was asked for, they stay images, and the network stays itself."""

import math

import pytest
import torch
from foreign import small

from delib.detection import synthetic as module
from delib.detection.darknet import Darknet, yolov3_tiny
from delib.detection.heads import Head, SquaredHead
from delib.detection.infer import boxes_overlap
from delib.detection.synthetic import MOST, Targets, draw_targets, invert, shortfall, synthesize
from delib.detection.ultralytics import load_ultra
from delib.nn import checkpoint
from delib.nn.batchnorm import folded, norm_pairs
from delib.nn.layers import weight_layers

SIDE = 96


@pytest.fixture(scope="module")
def network() -> Darknet:
    """Random weights, with outputs that react to what is seen but mostly see nothing, and norms that have met noise."""
    net = yolov3_tiny(3)
    net.train()
    with torch.no_grad():
        for seed in range(20):
            net(torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)))
        for output in ("c15", "c22"):
            net.get_submodule(output).weight.mul_(20)
            net.get_submodule(output).bias.sub_(3)
    return net.eval()


def photos(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(99))


def imagine(network: Darknet, seed: int = 0, steps: int = 20, rate: float = 0.02) -> tuple[torch.Tensor, Targets]:
    return invert(network, photos(), torch.ones(80), torch.Generator().manual_seed(seed), steps=steps, rate=rate)


def test_the_network_sees_what_was_asked_for_and_did_not_before(network: Darknet) -> None:
    pictures, things = imagine(network, steps=40, rate=0.06)
    with torch.no_grad():
        head = network.heads[0]
        before, after = (things.read(network(images), 85) for images in (photos(), pictures))
    assert float(shortfall(after, things, head)) < 0.8 * float(shortfall(before, things, head))
    asked = 5 + things.cls[:, None]
    sure_before, sure_after = (t[:, 4].sigmoid() * t.gather(1, asked)[:, 0].sigmoid() for t in (before, after))
    assert float(sure_after.mean()) > 1.2 * float(sure_before.mean())


def test_pictures_are_pictures_near_the_photos(network: Darknet) -> None:
    pictures, _ = imagine(network)
    assert pictures.shape == photos().shape
    assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1
    stacked = torch.stack([photos().flatten(), pictures.flatten()])
    assert float(torch.corrcoef(stacked)[0, 1]) > 0.8


def test_the_same_chance_gives_the_same_pictures_another_others(network: Darknet) -> None:
    first, again, other = (imagine(network, seed, steps=2)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_network_stays_as_it_is(network: Darknet) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    imagine(network, steps=2)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_things_lie_apart_inside_their_pictures_and_only_asked_kinds_are_drawn(network: Darknet) -> None:
    odds = torch.zeros(80)
    odds[[7, 30]] = torch.tensor([1.0, 3.0])
    images = torch.zeros(40, 3, 320, 320)
    things = draw_targets(network, images, odds, torch.Generator().manual_seed(4))
    corners: dict[int, list[tuple[float, ...]]] = {}
    for (picture, head, anchor, row, column), (u, v, a, b) in zip(
        things.place.tolist(), things.box.tolist(), strict=True
    ):
        stride = (32, 16)[head]
        w, h = (
            size * torch.tensor(s).exp().item()
            for size, s in zip(network.heads[head].anchors[anchor], (a, b), strict=True)
        )
        x, y = (column + u) * stride, (row + v) * stride
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        assert min(box) > -1e-2
        assert max(box) < 320 + 1e-2
        corners.setdefault(picture, []).append(box)
    assert set(things.cls.tolist()) == {7, 30}
    assert (things.cls == 30).float().mean() > 0.6
    assert all(len(boxes) <= MOST for boxes in corners.values())
    shrunk = {i: [(a + 0.01, b + 0.01, c - 0.01, d - 0.01) for a, b, c, d in boxes] for i, boxes in corners.items()}
    assert not any(boxes_overlap(p, q) for boxes in shrunk.values() for k, p in enumerate(boxes) for q in boxes[:k])
    assert len(corners) == 40


def test_what_is_told_of_things_is_what_the_outputs_hold(network: Darknet) -> None:
    with torch.no_grad():
        outputs = network(photos())
    things = draw_targets(network, photos(), torch.ones(80), torch.Generator().manual_seed(1))
    told = things.read(outputs, 85)
    for (picture, head, anchor, row, column), values in zip(things.place.tolist(), told, strict=True):
        assert torch.equal(values, outputs[head][picture, 85 * anchor : 85 * (anchor + 1), row, column])


def test_missing_is_worked_out_by_hand() -> None:
    things = Targets(torch.zeros(1, 5, dtype=torch.long), torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, -0.1]]))
    head = Head(((10.0, 10.0),), 3)
    sure = torch.tensor([[0.0, 0.0, 0.2, -0.1, 50.0, -50.0, 50.0, -50.0]])
    assert float(shortfall(sure, things, head)) == pytest.approx(0, abs=1e-6)
    blank = torch.zeros(1, 8)
    ln2 = torch.tensor(2.0).log().item()
    assert float(shortfall(blank, things, head)) == pytest.approx(2.5 * ln2 + 0.2 * ln2 + 0.5 * (0.2**2 + 0.1**2))


def test_boxes_are_asked_for_as_each_network_tells_them() -> None:
    """YOLOv5's sigmoids of boxes: x and y of 0 are the cell's middle, w and h of 0 the anchor's sides."""
    things = Targets(torch.zeros(1, 5, dtype=torch.long), torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    values = torch.tensor([[0.0, 0.0, 0.0, 0.0, 60.0, 60.0, -60.0, 5.0, -7.0]])
    assert float(shortfall(values, things, SquaredHead(((10.0, 10.0),), 2, 2))) == pytest.approx(0, abs=1e-6)


def test_a_network_with_masks_is_asked_too_and_one_without_anchors_refused() -> None:
    network = small()
    images, things = invert(network, photos(2), torch.ones(3), torch.Generator().manual_seed(1), steps=2)
    assert images.shape == photos(2).shape
    assert len(things.cls)
    free = load_ultra("yolo11n.yaml")
    assert synthesize(free, SHOTS, KINDS, 0, seed=1) == []
    with pytest.raises(ValueError, match="need a network with anchors"):
        synthesize(free, SHOTS, KINDS, 1, seed=1)


def test_folded_norms_are_refused(network: Darknet) -> None:
    bare = folded(network, norm_pairs(network, torch.zeros(1, 3, 64, 64)))
    assert weight_layers(bare)
    with pytest.raises(ValueError, match="folded"):
        invert(bare, photos(), torch.ones(80), torch.Generator())


SHOTS = [torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8) for _ in range(4)]
KINDS = [[7], [7, 7, 9], [7], []]


def test_an_album_prefers_kinds_that_no_photo_holds(network: Darknet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(module, "AT_ONCE", 2)
    monkeypatch.setattr(module, "invert", lambda net, crops, odds, *_, **__: asked.append(odds) or (crops, None))
    pictures = synthesize(network, SHOTS, KINDS, 5, seed=1)
    assert [(p.dtype, tuple(p.shape)) for p in pictures] == [(torch.uint8, (3, 320, 320))] * 5
    assert len(asked) == 3
    assert asked[0][[7, 9, 0]].tolist() == pytest.approx([1 / 2, 1 / 2**0.5, 1])


def test_an_interrupted_album_goes_on_where_it_was(network: Darknet, monkeypatch, tmp_path) -> None:
    def give_up(net, crops, *_, **__):
        if calls.pop():
            raise KeyboardInterrupt
        return crops, None

    monkeypatch.setattr(module, "AT_ONCE", 2)
    monkeypatch.setattr(module, "invert", give_up)
    monkeypatch.setattr(checkpoint, "SAVE", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)
    calls, file = [False] * 3, tmp_path / "synthesize.ckpt"
    whole = synthesize(network, SHOTS, KINDS, 5, seed=1)
    calls = [True, False, False]
    with pytest.raises(KeyboardInterrupt):
        synthesize(network, SHOTS, KINDS, 5, seed=1, checkpoint=file)
    calls = [False]  # one batch is left to make
    resumed = synthesize(network, SHOTS, KINDS, 5, seed=1, checkpoint=file)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))

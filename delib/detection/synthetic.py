"""Synthetic images of classes that no photo at hand shows: photos changed until a detector sees chosen objects in them.

Few photos hold few classes, and a student that learns from them unlearns the others. The teacher knows all. So photos
are changed by gradient descent on their pixels until it finds chosen objects in chosen places, while the statistics
inside it stay those of photos (model inversion: Yin et al. 2020, DeepInversion, section 3; for detectors Chawla et al.
2021). No label and no further photo is needed. To the eye they are the old photos, strangely overgrown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from delib.detection.augment import Views
from delib.detection.detector import DetectionNetwork
from delib.detection.heads import Head
from delib.detection.infer import boxes_overlap
from delib.files import in_batch
from delib.nn.checkpoint import Checkpoint
from delib.nn.device import multiplying
from delib.nn.hooks import watched_calls

MOST = 4  # objects per image: as many as fit without overlapping
SIDE, AT_ONCE = 320, 16  # pixels of an image's side, and how many images are made together
JITTER = 6  # pixels by which a picture shifts at random between two steps, so that nothing hangs on single pixels
# What weighs beside the targets: how far statistics are from those of photos, and how rough the picture is.
STATISTICS, ROUGHNESS = 0.1, 0.002
# A picture moves in the space of its frequencies, by strength / frequency ** fall: all scales at once. Photos have a
# fall of 1; with less of it the old photo keeps its colours.
STRENGTH, FALL = 0.75, 0.75
# ... and along colours that photos do not mix: light, blue against orange, green against magenta (rows are R, G, B).
COLOURS = ((0.563, 0.195, 0.043), (0.585, 0.0, -0.108), (0.585, -0.195, 0.065))


@dataclass(frozen=True)
class Targets:
    """The objects to be seen: for each its ``place`` in the raw outputs [objects, 5] (image, head, anchor, row,
    column), its class ``cls`` [objects], and its ``box`` [objects, 4] as ``Head.placed`` gives it: x and y in the cell
    (0..1), the logarithms of width and height over the anchor's."""

    place: Tensor
    cls: Tensor
    box: Tensor

    def read(self, outputs: Sequence[Tensor], values: int) -> Tensor:
        """What raw outputs, of so many ``values`` per anchor, hold at each object's place: [objects, values]; mask
        prototypes behind them are not looked at."""
        picture, head, anchor, row, column = self.place.unbind(1)
        answer = outputs[0].new_zeros(len(self.cls), values)
        for number, raw in enumerate(outputs[: int(head.max()) + 1]):
            here = (head == number).nonzero()[:, 0]
            at = (picture[here], anchor[here], slice(None), row[here], column[here])
            answer = answer.index_copy(0, here, raw.unflatten(1, (-1, values))[at])
        return answer


def synthesize(
    network: DetectionNetwork,
    photos: Sequence[Tensor],
    classes: Sequence[Collection[int]],
    count: int,
    seed: int,
    precision: torch.dtype = torch.float32,
    checkpoint: Path | None = None,
) -> list[Tensor]:
    """``count`` synthetic images, uint8 RGB [3, 320, 320], made from random crops of ``photos``.

    Parameters
    ----------
    network : DetectionNetwork
        The teacher, with its batch norms and with anchors; left as it is.
    photos : sequence of Tensor
        uint8 RGB [3, height, width], of any sizes, where the network is, as the images will be.
    classes : sequence of collections of int
        Those present on each photo. A class that n photos hold is drawn with odds 1/√(1 + n), so that those which
        photos lack come most often, and none comes alone.
    count, seed : int
        How many (sixteen take half a minute on two cores), and what fixes the random draws.
    precision : torch.dtype
        In which layers multiply (see ``fastest_precision``).
    checkpoint : Path, optional
        The work goes on from this file if it exists, and is saved there every 15 seconds at most. One of other work
        is overwritten.

    Raises
    ------
    ValueError
        If images are asked for and the network has no anchors.
    """
    if not count:
        return []
    _anchored(network)
    holding = Counter(cls for several in classes for cls in set(several))
    odds = torch.tensor([1 / math.sqrt(1 + holding[cls]) for cls in range(network.heads[0].classes)])
    views = Views(photos, [SIDE])
    facts = (network, photos, classes, count, seed, precision)
    saved = Checkpoint("synthesize", *facts, file=checkpoint)
    pictures: list[Tensor] = list(saved.read(photos[0].device) or ())
    for start in tqdm(range(len(pictures), count, AT_ONCE), disable=in_batch()):
        chance = torch.Generator().manual_seed(seed * 1_000_003 + start)
        crops = torch.stack([views.part(SIDE, SIDE, chance) for _ in range(min(AT_ONCE, count - start))])
        redrawn, _ = invert(network, crops, odds, chance, precision=precision)
        pictures.extend((255 * redrawn).round().byte())
        saved.offer(lambda: pictures)
    saved.finish(lambda: pictures)
    return pictures


def invert(
    network: DetectionNetwork,
    photos: Tensor,
    odds: Tensor,
    chance: torch.Generator,
    *,
    steps: int = 40,
    rate: float = 0.02,
    precision: torch.dtype = torch.float32,
) -> tuple[Tensor, Targets]:
    """``photos`` changed so that ``network`` sees up to ``MOST`` objects on each: the images, and what was asked for.

    ``photos`` are float32 [n, 3, side, side] in 0..1, such as ``Views`` gives, and so are the images. Classes are drawn
    with ``odds`` [classes], places and sizes at random with ``chance``. With the default ``steps`` of Adam at ``rate``
    YOLOv3-tiny sees nine in ten with more than 0.5; twice the rate does so sooner, but leaves little of the photo. The
    network stays as it is; it multiplies in ``precision``. Raises ValueError where it has no batch norms: their running
    statistics tell how photos look from inside.
    """
    head = _anchored(network)[0]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)][2:]  # the first are costly
    if not norms:
        raise ValueError("the network's norms are folded, or it has none; give the network as it was loaded")
    targets = draw_targets(network, photos, odds, chance)
    spectrum = _spectrum(photos.shape[-1]).to(photos)
    waves = photos.new_zeros(*photos.shape[:2], *spectrum.shape, 2).requires_grad_()
    optimizer = torch.optim.Adam([waves], rate, betas=(0.9, 0.95))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        pictures = _changed(photos, waves, spectrum)
        with watched_calls(norms) as seen, multiplying(network, precision):
            outputs = network(_jittered(pictures, chance).contiguous(memory_format=torch.channels_last))
        values = targets.read([raw.float() for raw in outputs], head.values)
        deviation = torch.stack([_deviation(call.module, call.input.float()) for call in seen]).sum()
        roughness = pictures.diff(dim=2).square().sum() + pictures.diff(dim=3).square().sum()
        loss = shortfall(values, targets, head) + len(photos) * STATISTICS * deviation + ROUGHNESS * roughness
        (waves.grad,) = torch.autograd.grad(loss, [waves])  # none of the network's own values
        optimizer.step()
    with torch.no_grad():
        return _changed(photos, waves, spectrum), targets


def _anchored(network: DetectionNetwork) -> Sequence[Head]:
    """The network's heads. Raises ValueError where they have no anchors, in which objects are asked for."""
    heads = [head for head in network.heads if isinstance(head, Head)]
    if not heads:
        raise ValueError("synthetic images need a network with anchors, and this one has none; ask for 0 of them")
    return heads


def draw_targets(network: DetectionNetwork, photos: Tensor, odds: Tensor, chance: torch.Generator) -> Targets:
    """Up to ``MOST`` targets on each photo, in boxes about as large as the anchors, that do not overlap."""
    side, rows, boxes, heads = photos.shape[-1], [], [], _anchored(network)
    with torch.no_grad():
        strides = [side // raw.shape[-1] for raw in network(photos[:1])[: len(heads)]]
    for picture in range(len(photos)):
        taken: list[tuple[float, ...]] = []
        for _ in range(6 * MOST):
            head = int(torch.randint(len(strides), (), generator=chance))
            anchors, stride = heads[head].anchors, strides[head]
            anchor = int(torch.randint(len(anchors), (), generator=chance))
            stretch = (0.25 * torch.randn(2, generator=chance)).exp().tolist()
            w, h = (min(a * s, 0.85 * side) for a, s in zip(anchors[anchor], stretch, strict=True))
            x, y = (float(u) * (side - s) + s / 2 for u, s in zip(torch.rand(2, generator=chance), (w, h), strict=True))
            corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            if len(taken) == MOST or any(boxes_overlap(corners, other) for other in taken):
                continue
            taken.append(corners)
            rows.append([picture, head, anchor, int(y // stride), int(x // stride)])
            boxes.append(
                [x / stride % 1, y / stride % 1, math.log(w / anchors[anchor][0]), math.log(h / anchors[anchor][1])]
            )
    classes = torch.multinomial(odds, len(rows), True, generator=chance)
    place, cls, box = (values.to(photos.device) for values in (torch.tensor(rows), classes, torch.tensor(boxes)))
    return Targets(place, cls, box)


def _spectrum(side: int) -> Tensor:
    """How far each Fourier coefficient [side, side // 2 + 1] moves: farther the lower its frequency."""
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None])
    return STRENGTH / frequency.clamp(min=1 / side).pow(FALL)


def _changed(photos: Tensor, waves: Tensor, spectrum: Tensor) -> Tensor:
    """The photos with ``waves`` added, before the sigmoid that keeps pixels in 0..1."""
    side = photos.shape[-1]
    change = torch.fft.irfft2(torch.view_as_complex(waves) * spectrum, s=(side, side), norm="ortho")
    change = torch.einsum("nchw,dc->ndhw", change, photos.new_tensor(COLOURS))
    return torch.sigmoid(photos.clamp(0.03, 0.97).logit() + change)


def _jittered(pictures: Tensor, chance: torch.Generator) -> Tensor:
    """Shifted by some pixels, brighter or darker: what only one exact image shows is no object."""
    shift = torch.randint(-JITTER, JITTER + 1, (2,), generator=chance).tolist()
    gain, light = (torch.rand(2, generator=chance) - 0.5).tolist()
    return pictures.roll(shift, (2, 3)) * (1 + 0.3 * gain) + 0.1 * light


def shortfall(values: Tensor, targets: Targets, head: Head) -> Tensor:
    """How far raw outputs [objects, values] at the targets' places are from showing them: there, with class and box.

    ``head`` says what the values mean.
    """
    classes = values[:, 5 : 5 + head.classes]
    wanted = classes.gather(1, targets.cls[:, None])[:, 0]
    others = F.softplus(classes).sum(1) - F.softplus(wanted)
    boxes = head.placed(values[:, :4]) - targets.box
    present = F.softplus(-values[:, 4]) + 1.5 * F.softplus(-wanted)
    return (present + 0.1 * others + 0.5 * boxes.square().sum(1)).sum()


def _deviation(norm: nn.Module, x: Tensor) -> Tensor:
    """How far a norm's inputs are from what it met in training: means in deviations, logarithms of variances."""
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    shift = (x.mean((0, 2, 3)) - mean).square() / variance
    stretch = ((x.var((0, 2, 3)) + 1e-3) / (variance + 1e-3)).log().square()
    return shift.mean() + stretch.mean()

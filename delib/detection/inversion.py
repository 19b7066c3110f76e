"""Pictures of things that no photo at hand shows: photos redrawn until a detector is sure that it sees them.

Few photos hold few kinds of things, and a student that learns from them unlearns the others. The teacher knows all.
So photos are changed by gradient descent on their pixels until it finds chosen things in chosen places, while the
statistics inside it stay those of photos (model inversion: Yin et al. 2020, DeepInversion, section 3; for detectors
Chawla et al. 2021). No label and no further photo is needed. To the eye they are the old photos, strangely overgrown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from delib.detection.augment import Views
from delib.detection.darknet import Darknet
from delib.files import atomic_path, in_batch
from delib.nn.device import multiplying

EACH = 4  # things a picture at most: as many as fit without overlapping
SIDE, AT_ONCE = 320, 16  # an album's pictures: pixels of a side, and how many are redrawn together
SHAKE = 6  # pixels by which a picture shifts at random between two steps, so that nothing hangs on single pixels
# What weighs beside the things: how far statistics are from those of photos, and how rough the picture is.
STATISTICS, ROUGHNESS = 0.1, 0.002
# A picture moves in the space of its frequencies, by strength / frequency ** fall: all scales at once. Photos have a
# fall of 1; with less of it the old photo keeps its colours.
STRENGTH, FALL = 0.75, 0.75
# ... and along colours that photos do not mix: light, blue against orange, green against magenta (rows are R, G, B).
COLOURS = ((0.563, 0.195, 0.043), (0.585, 0.0, -0.108), (0.585, -0.195, 0.065))


@dataclass(frozen=True)
class Things:
    """What is to be seen: for each thing the ``place`` in the raw outputs that tells of it [things, 5] (picture, head,
    anchor, row, column), its ``kind`` [things], and its ``box`` [things, 4] as raw outputs tell it: x and y in the cell
    (0..1), the logarithms of width and height over the anchor's."""

    place: Tensor
    kind: Tensor
    box: Tensor

    def told(self, outputs: Sequence[Tensor], values: int) -> Tensor:
        """What raw outputs, of so many ``values`` an anchor, tell of each thing: [things, values]."""
        picture, head, anchor, row, column = self.place.unbind(1)
        answer = outputs[0].new_zeros(len(self.kind), values)
        for number, raw in enumerate(outputs):
            here = (head == number).nonzero()[:, 0]
            at = (picture[here], anchor[here], slice(None), row[here], column[here])
            answer = answer.index_copy(0, here, raw.unflatten(1, (-1, values))[at])
        return answer


def album(
    network: Darknet,
    photos: Sequence[Tensor],
    kinds: Sequence[Collection[int]],
    count: int,
    seed: int,
    precision: torch.dtype = torch.float32,
    checkpoint: Path | None = None,
) -> list[Tensor]:
    """``count`` pictures, uint8 RGB [3, 320, 320], imagined over random crops of ``photos`` (uint8, of any size).

    ``kinds`` are those of the things on each photo. A kind that n photos hold is drawn with odds 1/√(1 + n), so that
    those which photos lack come most often, and none comes alone. Sixteen take half a minute of two cores. With
    ``checkpoint`` the work goes on from that file if it exists, and is saved there as it goes. The photos, like the
    pictures, are where the network is.
    """
    holding = Counter(kind for several in kinds for kind in set(several))
    odds = torch.tensor([1 / math.sqrt(1 + holding[kind]) for kind in range(network.heads[0].classes)])
    views = Views(photos, [SIDE])
    pictures: list[Tensor] = []
    if checkpoint and checkpoint.is_file():
        pictures += torch.load(checkpoint, weights_only=True, map_location=photos[0].device)
    for start in tqdm(range(len(pictures), count, AT_ONCE), disable=in_batch()):
        chance = torch.Generator().manual_seed(seed * 1_000_003 + start)
        crops = torch.stack([views.part(SIDE, SIDE, chance) for _ in range(min(AT_ONCE, count - start))])
        redrawn, _ = imagined(network, crops, odds, chance, precision=precision)
        pictures += list((255 * redrawn).round().byte())
        if checkpoint:
            with atomic_path(checkpoint) as temporary:
                torch.save(torch.stack(pictures), temporary)
    return pictures


def imagined(
    network: Darknet,
    photos: Tensor,
    odds: Tensor,
    chance: torch.Generator,
    *,
    steps: int = 40,
    rate: float = 0.02,
    precision: torch.dtype = torch.float32,
) -> tuple[Tensor, Things]:
    """``photos`` redrawn so that ``network`` sees up to four things on each: the pictures and what was asked for.

    ``photos`` are float32 [n, 3, side, side] in 0..1, such as ``Views`` gives, and so are the pictures. Kinds of things
    are drawn with ``odds`` [classes], places and sizes at random. ``steps`` of Adam at ``rate`` make YOLOv3-tiny surer
    than 0.5 of nine in ten; twice the rate does so sooner, but leaves little of the photo. The network stays as it is;
    it multiplies in ``precision`` (see ``distil.fastest_precision``). Raises ValueError where it has no batch norms:
    their running statistics are what says how photos look from inside.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)][2:]  # the first are costly
    if not norms:
        raise ValueError("the network's norms are folded, or it has none; give the network as it was loaded")
    things = _things(network, photos, odds, chance)
    falls = _falls(photos.shape[-1]).to(photos)
    waves = photos.new_zeros(*photos.shape[:2], *falls.shape, 2).requires_grad_()
    optimizer = torch.optim.Adam([waves], rate, betas=(0.9, 0.95))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        pictures = _drawn(photos, waves, falls)
        with _kept(network), _passing(norms) as seen, multiplying(network, precision):
            outputs = network(_shaken(pictures, chance).contiguous(memory_format=torch.channels_last))
        told = things.told([raw.float() for raw in outputs], 5 + len(odds))
        strange = torch.stack([_strangeness(norm, x.float()) for norm, x in zip(norms, seen, strict=True)]).sum()
        loss = _missed(told, things) + len(photos) * STATISTICS * strange + ROUGHNESS * _roughness(pictures)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return _drawn(photos, waves, falls), things


def _things(network: Darknet, photos: Tensor, odds: Tensor, chance: torch.Generator) -> Things:
    """Up to ``EACH`` things on each photo, in boxes about as large as the anchors, that do not overlap."""
    side, rows, boxes = photos.shape[-1], [], []
    with torch.no_grad():
        strides = [side // raw.shape[-1] for raw in network(photos[:1])]
    for picture in range(len(photos)):
        taken: list[tuple[float, ...]] = []
        for _ in range(6 * EACH):
            head = int(torch.randint(len(strides), (), generator=chance))
            anchors, stride = network.heads[head].anchors, strides[head]
            anchor = int(torch.randint(len(anchors), (), generator=chance))
            stretch = (0.25 * torch.randn(2, generator=chance)).exp().tolist()
            w, h = (min(a * s, 0.85 * side) for a, s in zip(anchors[anchor], stretch, strict=True))
            x, y = (float(u) * (side - s) + s / 2 for u, s in zip(torch.rand(2, generator=chance), (w, h), strict=True))
            corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            if len(taken) == EACH or any(_overlap(corners, other) for other in taken):
                continue
            taken.append(corners)
            rows.append([picture, head, anchor, int(y // stride), int(x // stride)])
            boxes.append(
                [x / stride % 1, y / stride % 1, math.log(w / anchors[anchor][0]), math.log(h / anchors[anchor][1])]
            )
    kinds = torch.multinomial(odds, len(rows), True, generator=chance)
    place, kind, box = (told.to(photos.device) for told in (torch.tensor(rows), kinds, torch.tensor(boxes)))
    return Things(place, kind, box)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def _falls(side: int) -> Tensor:
    """How far each Fourier coefficient [side, side // 2 + 1] moves: farther the lower its frequency."""
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None])
    return STRENGTH / frequency.clamp(min=1 / side).pow(FALL)


def _drawn(photos: Tensor, waves: Tensor, falls: Tensor) -> Tensor:
    """The photos with ``waves`` added, before the sigmoid that keeps pixels in 0..1."""
    side = photos.shape[-1]
    change = torch.fft.irfft2(torch.view_as_complex(waves) * falls, s=(side, side), norm="ortho")
    return torch.sigmoid(
        photos.clamp(0.03, 0.97).logit() + torch.einsum("nchw,dc->ndhw", change, photos.new_tensor(COLOURS))
    )


def _shaken(pictures: Tensor, chance: torch.Generator) -> Tensor:
    """Shifted by some pixels, brighter or darker: a thing that only one exact picture shows is none."""
    shift = torch.randint(-SHAKE, SHAKE + 1, (2,), generator=chance).tolist()
    gain, light = (torch.rand(2, generator=chance) - 0.5).tolist()
    return pictures.roll(shift, (2, 3)) * (1 + 0.3 * gain) + 0.1 * light


def _missed(told: Tensor, things: Things) -> Tensor:
    """How far the outputs are from telling of the things: there, of its kind and hardly another, with its box."""
    kinds = told[:, 5:]
    wanted = kinds.gather(1, things.kind[:, None])[:, 0]
    others = F.softplus(kinds).sum(1) - F.softplus(wanted)
    boxes = torch.cat([told[:, :2].sigmoid(), told[:, 2:4]], 1) - things.box
    present = F.softplus(-told[:, 4]) + 1.5 * F.softplus(-wanted)
    return (present + 0.1 * others + 0.5 * boxes.square().sum(1)).sum()


def _strangeness(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """How far a norm's inputs are from what it met in training: means in deviations, logarithms of variances."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    shift = (x.mean((0, 2, 3)) - mean).square() / variance
    stretch = ((x.var((0, 2, 3)) + 1e-3) / (variance + 1e-3)).log().square()
    return shift.mean() + stretch.mean()


def _roughness(pictures: Tensor) -> Tensor:
    down, right = pictures.diff(dim=2).square().sum(), pictures.diff(dim=3).square().sum()
    return down + right


@contextmanager
def _passing(norms: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What goes into the norms, in order, filled in by the forward pass made inside the block."""
    seen: list[Tensor] = []
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for norm in norms]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _kept(network: nn.Module) -> Iterator[None]:
    """Inside the block passes take no gradients of the network's own values."""
    asked = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)

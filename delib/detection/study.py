"""A teacher on photos, and students compared with it: detections, scores, galleries, what was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import pandas as pd
import torch
from torch import Tensor, nn

from delib.detection import overlays
from delib.detection.augment import Views
from delib.detection.coco import CLASSES, Photo
from delib.detection.detector import DetectionNetwork
from delib.detection.infer import CONFIDENT, LEAST, LIKELY, SHOWN, Detections, Detector, detect, device_of
from delib.detection.letterbox import DARKNET, Letterboxing, prepare
from delib.detection.masks import grabcut
from delib.detection.metrics import Comparison, compare, lost_objects, scores
from delib.detection.sketches import drawn

MASKS_KEPT = 2000  # a mask of a COCO photo takes 300 kB
Found = Sequence[Detections]  # what a network found on the study's photos, in their order
Picture = tuple[bytes, str]  # a PNG and its alternative text, as ``suite.figures.show`` takes them


class Study:
    """A teacher's detections on ``photos``, and questions about students that look at the same photos.

    ``photos`` are read once; tensors (uint8 RGB [3, height, width]) are taken as they are. ``size`` is the network's
    input, one number for a square; by default the teacher's own. Masks are the network's own where it has a mask head,
    otherwise GrabCut's, prompted by the boxes; each box is segmented once.

    ``teacher`` holds the teacher's detections from ``LEAST`` on, ``shown`` those from ``SHOWN`` on, ``order`` the
    photos' indices, those with the most objects first. Wherever ``photos`` are asked for, a number n stands for the
    first n of ``order``.
    """

    def __init__(
        self,
        teacher: Detector,
        photos: Sequence[Photo | Tensor],
        size: int | tuple[int, int] | None = None,
        batch: int = 8,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else size or teacher.size
        self.batch, self._device, self._letterboxing = batch, device_of(teacher), teacher.letterboxing
        self.pictures = [photo.read() if isinstance(photo, Photo) else photo.cpu() for photo in photos]
        self.sizes = [(picture.shape[1], picture.shape[2]) for picture in self.pictures]
        self.labels = [photo.labels if isinstance(photo, Photo) else None for photo in photos]
        self.outlined = [photo.outlined if isinstance(photo, Photo) else None for photo in photos]
        self.names: Sequence[str] = getattr(teacher, "names", CLASSES)
        self.teacher = self.detect(teacher)
        self.shown = _above(self.teacher)
        objects = [int((found.scores > CONFIDENT).sum()) for found in self.shown]
        self.objects = sum(objects)
        self.order = sorted(range(len(photos)), key=lambda i: (-objects[i], -len(self.shown[i])))
        self._mask = lru_cache(MASKS_KEPT)(lambda i, box: grabcut(self.pictures[i], torch.tensor([box]))[0])

    def __len__(self) -> int:
        return len(self.pictures)

    def detect(self, network: Detector) -> list[Detections]:
        """What a network finds on the photos, with confidence ``LEAST`` or more."""
        return detect(network, self.pictures, size=self.size, threshold=LEAST, batch=self.batch)

    def inputs(self, photos: int | Sequence[int] = 4) -> Tensor:
        """Photos as the network takes them, [n, 3, *size], where the teacher was."""
        inputs, _ = prepare([self.pictures[i] for i in self._chosen(photos)], self.size, self._letterboxing)
        return inputs.to(self._device)

    def compare(self, found: Found) -> Comparison:
        """A student's detections from ``SHOWN`` on against the teacher's."""
        return compare(self.shown, _above(found))

    def scores(self, found: Found) -> dict[str, float]:
        """All metrics of a student's detections from ``LEAST`` on; see ``metrics.scores``."""
        return scores(self.teacher, found, self.labels, self.sizes, self._masked, self.outlined)

    def curves(self, found: Mapping[float, Found]) -> dict[str, tuple[list[float], list[float]]]:
        """Lines for ``suite.figures.curves``: retention and false positives against the keys of ``found``."""
        results = [self.compare(one) for one in found.values()]
        lines = {f"objects retained at {at}": [result.retention(at) for result in results] for at in (SHOWN, LIKELY)}
        lines[f"false positives at {LIKELY}"] = [result.false_positive_rate for result in results]
        return {name: (list(found), values) for name, values in lines.items()}

    def gallery(self, found: Found | None = None, photos: int | Sequence[int] = 4) -> Picture:
        """The teacher's detections, or a student's, with masks; two photos a row."""
        which = self._chosen(photos)
        some = self._some(self.shown if found is None else _above(found), which)
        panels = [overlays.overlay(self.pictures[i], one, names=self.names) for i, one in zip(which, some, strict=True)]
        rows = [overlays.beside(panels[i : i + 2]) for i in range(0, len(panels), 2)]
        who = "teacher" if found is None else "student"
        return overlays.png(overlays.below(rows)), f"Photos with the {who}'s detections: {self._words(some)}"

    def side_by_side(self, found: Found, photos: int | Sequence[int] = 4) -> Picture:
        """The teacher's detections (left) and a student's (right); objects that the student lost are dashed."""
        which = self._chosen(photos)
        theirs, ours = self._some(self.shown, which), self._some(_above(found), which)
        sides = zip(which, theirs, ours, strict=True)
        rows = [overlays.side_by_side(self.pictures[i], t, s, names=self.names) for i, t, s in sides]
        words = f"Teacher's and student's detections side by side. The student's: {self._words(ours)}"
        return overlays.png(overlays.below(rows)), words

    def frames(
        self, found: Mapping[float, Found], photos: int | Sequence[int] = 2
    ) -> list[tuple[str, bytes, str, str]]:
        """For a slider, one frame for each student, keyed by its sparsity: label, PNG, alternative text, caption."""
        which, frames = self._chosen(photos), []
        for sparsity, one in found.items():
            some, result = self._some(_above(one), which), self.compare(one)
            missed = [lost_objects(self.shown[i], s) for i, s in zip(which, some, strict=True)]
            panels = [
                overlays.overlay(self.pictures[i], s, lost=gone, names=self.names)
                for i, s, gone in zip(which, some, missed, strict=True)
            ]
            label = f"{sparsity:.1%}"
            caption = f"{result.retained()} of {result.objects} objects on all {len(self)} photos retained"
            frames.append((label, overlays.png(overlays.beside(panels)), f"At {label}: {self._words(some)}", caption))
        return frames

    def lost(self, found: Found, at: float = LIKELY) -> pd.DataFrame:
        """Every object of the teacher that a student does not find with confidence ``at``: where, what, how sure."""
        result = self.compare(found)
        rows = [
            (photo, overlays.class_name(int(self.shown[photo].classes[i]), self.names), *confidences)
            for (photo, i), confidences in zip(result.places.tolist(), result.confidences.tolist(), strict=True)
            if confidences[1] < at
        ]
        return pd.DataFrame(rows, columns=["photo", "class", "teacher's confidence", "student's"])

    def lost_gallery(self, found: Found, most: int = 3) -> Picture | None:
        """``side_by_side`` of the first photos on which objects were lost; None where none was."""
        photos = list(dict.fromkeys(self.lost(found)["photo"].tolist()))[:most]
        return self.side_by_side(found, photos) if photos else None

    def _chosen(self, photos: int | Sequence[int]) -> Sequence[int]:
        return self.order[:photos] if isinstance(photos, int) else photos

    def _some(self, found: Found, photos: Sequence[int]) -> list[Detections]:
        return [self._masked(i, found[i]) for i in photos]

    def _words(self, found: Found) -> str:
        return "; ".join(overlays.describe(one, self.names) for one in found)

    def _masked(self, photo: int, found: Detections) -> Detections:
        """Detections on one photo with masks."""
        if found.masks is not None:
            return found
        if found.sketches is not None:
            return replace(found, masks=drawn(found.sketches, *self.sizes[photo]))
        masks = [self._mask(photo, tuple(box)) for box in found.boxes.tolist()]
        return replace(found, masks=torch.stack(masks) if masks else self.pictures[photo][:0].bool())


class Validation:
    """Photos on which choices are made: a network's divergence on them, the teacher's outputs computed once.

    ``teacher`` is the network that students diverge from; ``inputs`` [n, 3, *size] are where it is.
    """

    def __init__(self, teacher: DetectionNetwork, photos: Sequence[Photo], size: int, batch: int = 12) -> None:
        pictures = [photo.read().to(device_of(teacher)) for photo in photos]
        self.inputs, _ = prepare(pictures, (size, size), teacher.letterboxing)
        self.measure = teacher.divergence()
        with torch.no_grad():
            self._batches = [(part, teacher(part)) for part in self.inputs.split(batch)]

    @torch.no_grad()
    def divergence(self, network: nn.Module) -> float:
        """The network's divergence from the teacher, in nats per photo."""
        sums = [float(self.measure(network(part), outputs)) * len(part) for part, outputs in self._batches]
        return sum(sums) / len(self.inputs)


def classes_present(teacher: Detector, pictures: Sequence[Tensor], size: int) -> list[list[int]]:
    """The classes that the teacher sees on each picture with confidence ``LIKELY`` or more."""
    found = detect(teacher, pictures, size=(size, size), threshold=LIKELY)
    return [one.classes.tolist() for one in found]


def calibration_inputs(
    pictures: Sequence[Tensor],
    shots: Sequence[Tensor],
    counts: tuple[int, int],
    size: int,
    seed: int,
    letterboxing: Letterboxing = DARKNET,
) -> Tensor:
    """Inputs that layers are fitted to, channels last: the first of ``pictures`` letterboxed, and views of ``shots``.

    ``counts`` says how many of each, ``letterboxing`` how the network takes its photos.
    """
    inputs, _ = prepare(pictures[: counts[0]], (size, size), letterboxing)
    if counts[1]:
        views = Views(shots, [size], letterboxing.margin)(counts[1], torch.Generator().manual_seed(seed))
        inputs = torch.cat([inputs, views])
    return inputs.contiguous(memory_format=torch.channels_last)


def _above(found: Found) -> list[Detections]:
    return [one.above(SHOWN) for one in found]

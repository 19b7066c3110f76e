"""Darknet's network descriptions (`.cfg`): a parser that trusts nothing, and YOLOv3's two networks as we write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MAX_CFG_BYTES = 1 << 20
MAX_SECTIONS = 1000


@dataclass
class Section:
    """One ``[kind]`` block of a cfg: its options as written, and where it stands, for error messages."""

    kind: str
    where: str
    options: dict[str, str] = field(default_factory=dict)

    def text(self, name: str, default: str) -> str:
        """An option as written, or ``default``."""
        return self.options.get(name, default)

    def integer(self, name: str, default: int | None = None, low: int = 0, high: int = 1 << 16) -> int:
        """A whole number from ``low`` to ``high``. Raises ValueError if it is absent without a default, or outside."""
        value = self.integers(name, None if default is None else [default])
        if len(value) != 1 or not low <= value[0] <= high:
            raise ValueError(f"{self.where}: {name} must be a number from {low} to {high}, not {self._seen(name)}")
        return value[0]

    def integers(self, name: str, default: list[int] | None = None) -> list[int]:
        """A comma-separated list of whole numbers. Raises ValueError if it is absent without a default."""
        if name not in self.options:
            if default is None:
                raise ValueError(f"{self.where}: [{self.kind}] lacks {name}")
            return default
        try:
            return [int(item) for item in self.options[name].split(",")]
        except ValueError:
            raise ValueError(f"{self.where}: {name} must hold whole numbers, not {self._seen(name)}") from None

    def numbers(self, name: str) -> list[float]:
        """A comma-separated list of numbers. Raises ValueError if it is absent or is something else."""
        try:
            return [float(item) for item in self.options.get(name, "").split(",")]
        except ValueError:
            raise ValueError(f"{self.where}: {name} must hold numbers, not {self._seen(name)}") from None

    def _seen(self, name: str) -> str:
        return repr(self.options.get(name, "")[:40])


def parse_cfg(text: str, name: str = "cfg") -> list[Section]:
    """The sections of a cfg in their order, beginning with ``[net]``; comments (``#`` and ``;``) are dropped.

    ``name`` is what error messages call the file. Raises ValueError, naming the line, where a line is neither a
    section nor ``option=value``, and if the first section is not ``[net]`` (or its older name ``[network]``).
    """
    sections: list[Section] = []
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{name}, line {number}"
        line = line.split("#")[0].split(";")[0].strip()
        if line.startswith("[") and line.endswith("]"):
            sections.append(Section(line[1:-1].strip().lower(), where))
        elif "=" in line and sections:
            option, value = line.split("=", 1)
            sections[-1].options[option.strip()] = value.strip()
        elif line:
            raise ValueError(f"{where}: expected [section] or option=value, found {line[:40]!r}")
        if len(sections) > MAX_SECTIONS:
            raise ValueError(f"{where}: more than {MAX_SECTIONS} sections; this is not a network that delib can build")
    if not sections or sections[0].kind not in ("net", "network"):
        raise ValueError(f"{name}: a darknet cfg begins with [net], this file does not; check that it is the cfg")
    return sections


def read_cfg(path: str | Path) -> list[Section]:
    """``parse_cfg`` of a file. Raises ValueError if it is larger than a cfg can be or not a text."""
    path = Path(path)
    if path.stat().st_size > MAX_CFG_BYTES:
        raise ValueError(f"{path}: larger than {MAX_CFG_BYTES} bytes, so not a darknet cfg; did you pass the weights?")
    try:
        return parse_cfg(path.read_text(encoding="utf-8"), path.name)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file, so not a darknet cfg; did you pass the weights?") from None


COCO_CLASSES = 80


def _section(kind: str, **options: object) -> str:
    return f"[{kind}]\n" + "".join(f"{name}={value}\n" for name, value in options.items())


def _net() -> str:
    return _section("net", width=416, height=416, channels=3)


def _conv(filters: int, size: int = 3, stride: int = 1) -> str:
    return _section(
        "convolutional", batch_normalize=1, filters=filters, size=size, stride=stride, pad=1, activation="leaky"
    )


def _head(anchors: tuple[int, ...], mask: str) -> str:
    """The last convolution, with the numbers of 3 boxes at each place, and what they mean."""
    convolution = _section(
        "convolutional", filters=3 * (COCO_CLASSES + 5), size=1, stride=1, pad=1, activation="linear"
    )
    return convolution + _section(
        "yolo", mask=mask, anchors=",".join(map(str, anchors)), classes=COCO_CLASSES, num=len(anchors) // 2
    )


def _finer(filters: int, skip: int) -> str:
    """From the features four layers back to twice their resolution, joined with those of layer ``skip``."""
    return (
        _section("route", layers=-4)
        + _conv(filters, size=1)
        + _section("upsample", stride=2)
        + _section("route", layers=f"-1,{skip}")
    )


def yolov3_tiny_cfg() -> str:
    """YOLOv3-tiny: 13 convolutions, 8,858,734 values; boxes at strides 32 and 16.

    The cfg that is published with the weights gives the finer head the anchors 0, 1, 2; the weights were trained with
    1, 2, 3 (ultralytics/yolov3 issues 256 and 421, pjreddie/darknet issue 764), as here. With the published ones its
    boxes come out too small: AP50 .22 instead of .39 on 150 photos of COCO val2017.
    """
    anchors = (10, 14, 23, 27, 37, 58, 81, 82, 135, 169, 344, 319)
    backbone = "".join(
        _conv(16 << i) + _section("maxpool", size=2, stride=2 if i < 5 else 1) for i in range(6)
    )  # layers 0 to 11
    coarse = _conv(1024) + _conv(256, size=1) + _conv(512) + _head(anchors, "3,4,5")  # 12 to 16
    return _net() + backbone + coarse + _finer(128, skip=8) + _conv(256) + _head(anchors, "1,2,3")


def yolov3_cfg() -> str:
    """YOLOv3: Darknet-53 and three heads, 75 convolutions, 62,001,757 values; boxes at strides 32, 16 and 8."""
    anchors = (10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326)

    def residual(filters: int) -> str:
        return _conv(filters // 2, size=1) + _conv(filters) + _section("shortcut", **{"from": -3}, activation="linear")

    def stage(filters: int, blocks: int) -> str:
        return _conv(filters, stride=2) + residual(filters) * blocks

    def neck(filters: int) -> str:
        return (_conv(filters, size=1) + _conv(2 * filters)) * 3

    backbone = _conv(32) + stage(64, 1) + stage(128, 2) + stage(256, 8) + stage(512, 8) + stage(1024, 4)  # 0 to 74
    coarse = neck(512) + _head(anchors, "6,7,8")
    middle = _finer(256, skip=61) + neck(256) + _head(anchors, "3,4,5")
    fine = _finer(128, skip=36) + neck(128) + _head(anchors, "0,1,2")
    return _net() + backbone + coarse + middle + fine

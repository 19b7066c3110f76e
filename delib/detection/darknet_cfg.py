"""Darknet's network descriptions (`.cfg`): a parser that trusts nothing, and YOLOv3's two networks as we write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

MAX_CFG_BYTES = 1 << 20
MAX_SECTIONS = 1000
ALIASES = {"network": "net", "conv": "convolutional", "max": "maxpool"}
# What options do is taken from src/parser.c of pjreddie's and AlexeyAB's darknet. Those in UNUSED say how to train, how
# fast to compute or what to print, but change no output of a trained network; "" stands for every kind of layer.
UNUSED = {
    "net": """batch subdivisions sequential_subdivisions dynamic_minibatch max_batches learning_rate_min
        policy burn_in power gamma step steps scale scales seq_scales sgdr_cycle sgdr_mult momentum decay adam B1 B2 eps
        ema_alpha loss_scale angle aspect saturation exposure hue flip blur gaussian_noise mixup cutmix mosaic
        mosaic_bound max_crop min_crop center random resize_step letter_box label_smooth_eps unsupervised contrastive
        contrastive_jit_flip contrastive_color attention adversarial_lr max_chart_loss notruth try_fix_nan
        weights_reject_freq equidistant_point badlabels_rejection_percentage num_sigmas_reject_badlabels track
        augment_speed use_cuda_graph optimized_memory workspace_size_limit_MB show_receptive_field""",
    "convolutional": "angle dot grad_centr stream wait_stream",
    "route": "stream wait_stream",
    "yolo": """max jitter resize random ignore_thresh truth_thresh iou_thresh iou_thresh_kind iou_loss iou_normalizer
        obj_normalizer cls_normalizer delta_normalizer max_delta label_smooth_eps objectness_smooth focal_loss
        counters_per_class show_details beta_nms track_history_size sim_thresh dets_for_track dets_for_show
        track_ciou_norm""",
    "": "learning_rate stopbackward onlyforward dontsave dont_update burnin_update train_only_bn smooth clip truth",
}
# Options that would change what is computed, with the values at which they do not; with others they are refused. Greedy
# suppression of duplicates is the default one.
NEUTRAL = {
    "net": "time_steps=1",
    "convolutional": """antialiasing=0 assisted_excitation=0 bin_output=0 binary=0 cbn=0 coordconv=0 dilation=1
        flipped=0 reverse=0 rotate=0 stretch=0 stretch_sway=0 stride_x=-1 stride_y=-1 sway=0 xnor=0""",
    "maxpool": "antialiasing=0 maxpool_depth=0 maxpool_zero_nonmax=0 out_channels=1",
    "shortcut": "alpha=1 beta=1 weights_type=none weights_normalization=none",
    "upsample": "scale=1",
    "yolo": "new_coords=0 nms_kind=default nms_kind=greedynms scale_x_y=1",
    "": "dontload=0 dontloadscales=0 numload=0",
}
Number = TypeVar("Number", int, float)


@dataclass
class Section:
    """One ``[kind]`` block of a cfg: its options as written, those that were read, and where it stands.

    All that reads an option raises ValueError, naming it, where it is absent without a default or unfit.
    """

    kind: str
    where: str
    options: dict[str, str] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    def text(self, name: str, default: str) -> str:
        """An option as written, or ``default``."""
        self.read.add(name)
        return self.options.get(name, default)

    def integer(self, name: str, default: int | None = None, low: int = 0, high: int = 1 << 16) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.numbers(name, int, None if default is None else [default])
        if len(value) != 1 or not low <= value[0] <= high:
            raise ValueError(f"{self.where}: {name} must be a number from {low} to {high}, not {self._seen(name)}")
        return value[0]

    def numbers(
        self, name: str, kind: Callable[[str], Number], default: Sequence[Number] | None = None
    ) -> list[Number]:
        """Numbers, separated by commas, of absolute values below a million; a comment may follow them."""
        self.read.add(name)
        if name not in self.options and default is not None:
            return list(default)
        if name not in self.options:
            raise ValueError(f"{self.where}: lacks {name}")
        try:
            values = [kind(item) for item in _uncommented(self.options[name]).split(",")]
        except ValueError:
            values = []
        if not values or not all(abs(value) < 1e6 for value in values):
            raise ValueError(f"{self.where}: {name} must hold numbers ({kind.__name__}), not {self._seen(name)}")
        return values

    def check(self) -> None:
        """Refuse options that nothing has read, unless they change nothing: ``UNUSED``, or as in ``NEUTRAL``."""
        unused = {*UNUSED.get(self.kind, "").split(), *UNUSED[""].split()}
        neutral = [pair.split("=") for kind in (self.kind, "") for pair in NEUTRAL.get(kind, "").split()]
        for name in [option for option in self.options if option not in self.read | unused]:
            known = [value for option, value in neutral if option == name]
            if not known:
                hint = "remove it if it concerns training alone"
                raise ValueError(f"{self.where}: delib knows no option {name[:40]!r} here; {hint}")
            if not any(_same(self.options[name], value) for value in known):
                raise ValueError(f"{self.where}: {name} must be {' or '.join(known)} here, not {self._seen(name)}")

    def _seen(self, name: str) -> str:
        return repr(self.options.get(name, "")[:40])


def _uncommented(text: str) -> str:
    """What C's atoi and atof see of a number: neither a comment behind it nor what only Python takes for digits."""
    text = text.split("#")[0].split(";")[0]
    return "" if "_" in text or not text.isascii() else text


def _same(text: str, value: str) -> bool:
    """Whether an option, a number or a word, has this value."""
    try:
        return float(_uncommented(text)) == float(value)
    except ValueError:
        return text == value


def parse_cfg(text: str, name: str = "cfg") -> list[Section]:
    """The sections of a cfg in their order, beginning with ``[net]``; as in darknet, lines that begin with ``#`` or
    ``;`` are comments, and of an option given twice in a section the first counts.

    ``name`` is what error messages call the file. Raises ValueError, naming the line, where a line is neither a
    section nor ``option=value``, and if the first section is not ``[net]`` (or its older name ``[network]``).
    """
    sections: list[Section] = []
    for number, line in enumerate(text.split("\n"), 1):
        where, line = f"{name}, line {number}", line.strip()
        if not line or line[0] in "#;":
            continue
        kind = line[1:-1].strip()
        if line[0] + line[-1] == "[]" and kind.isidentifier():
            sections.append(Section(ALIASES.get(kind, kind), f"{where}, [{kind[:40]}]"))
        elif "=" in line and sections:
            option, value = line.split("=", 1)
            sections[-1].options.setdefault(option.strip(), value.strip())
        else:
            raise ValueError(f"{where}: expected [section] or option=value, found {line[:40]!r}")
        if len(sections) > MAX_SECTIONS:
            raise ValueError(f"{where}: more than {MAX_SECTIONS} sections; this is not a network that delib can build")
    if not sections or sections[0].kind != "net":
        raise ValueError(f"{name}: a darknet cfg begins with [net], this file does not; check that it is the cfg")
    return sections


def read_cfg(path: str | Path) -> list[Section]:
    """``parse_cfg`` of a file, whatever encoding its comments are in. Raises ValueError if it is larger than a cfg can
    be or not a text."""
    path = Path(path)
    if path.stat().st_size > MAX_CFG_BYTES:
        raise ValueError(f"{path}: larger than {MAX_CFG_BYTES} bytes, so not a darknet cfg; did you pass the weights?")
    content = path.read_bytes()
    if b"\0" in content:
        raise ValueError(f"{path}: not a text file, so not a darknet cfg; did you pass the weights?")
    return parse_cfg(content.decode("utf-8-sig", errors="replace"), path.name)


COCO_CLASSES = 80


def _section(kind: str, **options: object) -> str:
    return f"[{kind}]\n" + "".join(f"{name}={value}\n" for name, value in options.items())


NET = _section("net", width=416, height=416, channels=3)


def _conv(filters: int, size: int = 3, stride: int = 1) -> str:
    options = {"filters": filters, "size": size, "stride": stride, "pad": 1, "activation": "leaky"}
    return _section("convolutional", batch_normalize=1, **options)


def _head(anchors: tuple[int, ...], mask: str) -> str:
    """The last convolution, with the numbers of 3 boxes at each place, and what they mean."""
    filters, places = 3 * (COCO_CLASSES + 5), ",".join(map(str, anchors))
    convolution = _section("convolutional", filters=filters, size=1, stride=1, pad=1, activation="linear")
    return convolution + _section("yolo", mask=mask, anchors=places, classes=COCO_CLASSES, num=len(anchors) // 2)


def _finer(filters: int, skip: int) -> str:
    """From the features four layers back to twice their resolution, joined with those of layer ``skip``."""
    up = _section("route", layers=-4) + _conv(filters, size=1) + _section("upsample", stride=2)
    return up + _section("route", layers=f"-1,{skip}")


def yolov3_tiny_cfg() -> str:
    """YOLOv3-tiny: 13 convolutions, 8,858,734 values; boxes at strides 32 and 16.

    The cfg that is published with the weights gives the finer head the anchors 0, 1, 2; the weights were trained with
    1, 2, 3 (ultralytics/yolov3 issues 256 and 421, pjreddie/darknet issue 764), as here. With the published ones its
    boxes come out too small: AP50 .22 instead of .39 on 150 photos of COCO val2017.
    """
    anchors = (10, 14, 23, 27, 37, 58, 81, 82, 135, 169, 344, 319)
    halving = _section("maxpool", size=2, stride=2)
    backbone = halving.join(_conv(16 << i) for i in range(6)) + _section("maxpool", size=2, stride=1)  # 0 to 11
    coarse = _conv(1024) + _conv(256, size=1) + _conv(512) + _head(anchors, "3,4,5")  # 12 to 16
    return NET + backbone + coarse + _finer(128, skip=8) + _conv(256) + _head(anchors, "1,2,3")


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
    return NET + backbone + coarse + middle + fine

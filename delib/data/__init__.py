"""Data sets and where they are fetched from, the classifiers of the notebooks, and their trained teachers."""

from delib.data.classifiers import lenet5, lenet300, resnet
from delib.data.download import DataUnavailable, FileSet, debian_package, download, pypi_archive, web
from delib.data.images import Split, fashion_mnist, mnist
from delib.data.teachers import teacher

__all__ = [
    "DataUnavailable",
    "FileSet",
    "Split",
    "debian_package",
    "download",
    "fashion_mnist",
    "lenet5",
    "lenet300",
    "mnist",
    "pypi_archive",
    "resnet",
    "teacher",
    "web",
]

"""Data sets and where they are fetched from, the classifiers of the notebooks, and their trained teachers."""

from delib.data.classifiers import CLASSIFIERS, lenet5, lenet300, resnet, vgg
from delib.data.download import DataUnavailable, FileSet
from delib.data.images import FASHION_CLASSES, Split, fashion_mnist, mnist
from delib.data.teachers import teacher

__all__ = ["CLASSIFIERS", "FASHION_CLASSES", "DataUnavailable", "FileSet", "Split"]
__all__ += ["fashion_mnist", "lenet5", "lenet300", "mnist", "resnet", "teacher", "vgg"]

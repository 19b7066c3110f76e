"""Data sets and where they are fetched from, classifiers, their trained teachers, networks and inputs of one's own."""

from delib.data.classifiers import CLASSIFIERS, lenet5, lenet300, resnet, vgg
from delib.data.download import DataUnavailable, FileSet
from delib.data.images import FASHION_CLASSES, Split, fashion_mnist, mnist
from delib.data.own import load_inputs, load_network
from delib.data.teachers import teacher

__all__ = ["CLASSIFIERS", "FASHION_CLASSES", "DataUnavailable", "FileSet", "Split"]
__all__ += ["fashion_mnist", "lenet5", "lenet300", "load_inputs", "load_network", "mnist", "resnet", "teacher", "vgg"]

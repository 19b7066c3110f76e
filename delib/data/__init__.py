"""Data sets and where they are fetched from, classifiers and their teachers, networks of one's own, and ONNX."""

from delib.data.classifiers import CLASSIFIERS, lenet5, lenet300, resnet, vgg
from delib.data.download import DataUnavailable, FileSet
from delib.data.export import export_onnx
from delib.data.images import FASHION_CLASSES, Split, fashion_mnist, mnist
from delib.data.jitter import views
from delib.data.own import digest, hold_out, load_inputs, load_network
from delib.data.pyodide import PYODIDE_FILES
from delib.data.teachers import teacher

__all__ = ["CLASSIFIERS", "FASHION_CLASSES", "PYODIDE_FILES", "DataUnavailable", "FileSet", "Split"]
__all__ += [
    "digest",
    "export_onnx",
    "fashion_mnist",
    "hold_out",
    "lenet5",
    "lenet300",
    "load_inputs",
    "load_network",
    "mnist",
    "resnet",
    "teacher",
    "vgg",
    "views",
]

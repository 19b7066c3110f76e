"""Detectors: YOLOv3 from darknet files, ultralytics networks, inference, metrics, masks, augmentation, photos."""

from delib.detection.augment import Views, repeats
from delib.detection.calibration import recalibrate
from delib.detection.coco import Photo, photo_sets, photos, sample_photos
from delib.detection.darknet import Darknet, yolov3_tiny
from delib.detection.darknet_weights import random_weights, read_weights, tensors, value_count, write_weights
from delib.detection.divergence import detection_divergence, focus
from delib.detection.infer import Detections, Detector, detect
from delib.detection.inversion import album
from delib.detection.letterbox import prepare
from delib.detection.masks import with_masks
from delib.detection.metrics import compare, match, scores
from delib.detection.opencv import OpenCV
from delib.detection.zoo import checksums, export_darknet, load_yolo

__all__ = [
    "Darknet",
    "Detections",
    "Detector",
    "OpenCV",
    "Photo",
    "Views",
    "album",
    "checksums",
    "compare",
    "detect",
    "detection_divergence",
    "export_darknet",
    "focus",
    "load_yolo",
    "match",
    "photo_sets",
    "photos",
    "prepare",
    "random_weights",
    "read_weights",
    "recalibrate",
    "repeats",
    "sample_photos",
    "scores",
    "tensors",
    "value_count",
    "with_masks",
    "write_weights",
    "yolov3_tiny",
]

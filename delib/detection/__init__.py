"""Detectors: YOLOv3 from darknet files, ultralytics networks, inference, metrics, masks, augmentation, photos."""

from delib.detection import overlays
from delib.detection.augment import Views, oversample
from delib.detection.calibration import Calibration, calibrate_objectness
from delib.detection.coco import CLASSES, Photo, photo_sets, photos, sample_photos
from delib.detection.darknet import Darknet, yolov3, yolov3_tiny
from delib.detection.darknet_weights import random_weights, read_weights, tensors, value_count, write_weights
from delib.detection.divergence import BACKGROUND, detection_divergence, position_weights
from delib.detection.infer import CONFIDENT, LEAST, LIKELY, SHOWN, Detections, Detector, detect
from delib.detection.letterbox import Letterboxing, letterbox, prepare
from delib.detection.masks import grabcut, with_masks
from delib.detection.metrics import Comparison, average_precision, compare, match, score_table, scores
from delib.detection.study import Study, Validation, calibration_inputs, classes_present
from delib.detection.synthetic import synthesize
from delib.detection.ultralytics import Ultra, load_ultra
from delib.detection.zoo import checksums, export_darknet, load_darknet, load_yolo, shipped

__all__ = [
    "BACKGROUND",
    "CLASSES",
    "CONFIDENT",
    "LEAST",
    "LIKELY",
    "SHOWN",
    "Calibration",
    "Comparison",
    "Darknet",
    "Detections",
    "Detector",
    "Letterboxing",
    "Photo",
    "Study",
    "Ultra",
    "Validation",
    "Views",
    "average_precision",
    "calibrate_objectness",
    "calibration_inputs",
    "checksums",
    "classes_present",
    "compare",
    "detect",
    "detection_divergence",
    "export_darknet",
    "grabcut",
    "letterbox",
    "load_darknet",
    "load_ultra",
    "load_yolo",
    "match",
    "overlays",
    "oversample",
    "photo_sets",
    "photos",
    "position_weights",
    "prepare",
    "random_weights",
    "read_weights",
    "sample_photos",
    "score_table",
    "scores",
    "shipped",
    "synthesize",
    "tensors",
    "value_count",
    "with_masks",
    "write_weights",
    "yolov3",
    "yolov3_tiny",
]

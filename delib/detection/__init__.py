"""Detectors: YOLOv3 from darknet files, ultralytics networks, inference, metrics, masks, augmentation, photos."""

from delib.detection import overlays
from delib.detection.augment import Views, oversample
from delib.detection.calibration import calibrate_objectness
from delib.detection.coco import CLASSES, Photo, photo_sets, photos, sample_photos
from delib.detection.darknet import Darknet
from delib.detection.detector import DetectionNetwork
from delib.detection.divergence import BACKGROUND, detection_divergence, position_weights
from delib.detection.family import claimed_band, kept, least_squares, shipped
from delib.detection.infer import CONFIDENT, LEAST, LIKELY, SHOWN, Detections, Detector, detect
from delib.detection.letterbox import prepare
from delib.detection.masks import grabcut
from delib.detection.metrics import compare, match, score_table, scores
from delib.detection.study import Study, Validation, calibration_inputs, classes_present
from delib.detection.synthetic import synthesize
from delib.detection.ultralytics import load_ultra
from delib.detection.yolov5 import load_yolov5
from delib.detection.zoo import checksums, export_darknet, load_darknet, load_detector, load_yolo

__all__ = [
    "BACKGROUND",
    "CLASSES",
    "CONFIDENT",
    "LEAST",
    "LIKELY",
    "SHOWN",
    "Darknet",
    "DetectionNetwork",
    "Detections",
    "Detector",
    "Photo",
    "Study",
    "Validation",
    "Views",
    "calibrate_objectness",
    "calibration_inputs",
    "checksums",
    "claimed_band",
    "classes_present",
    "compare",
    "detect",
    "detection_divergence",
    "export_darknet",
    "grabcut",
    "kept",
    "least_squares",
    "load_darknet",
    "load_detector",
    "load_ultra",
    "load_yolo",
    "load_yolov5",
    "match",
    "overlays",
    "oversample",
    "photo_sets",
    "photos",
    "position_weights",
    "prepare",
    "sample_photos",
    "score_table",
    "scores",
    "shipped",
    "synthesize",
]

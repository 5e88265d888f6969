"""What explanations are made of: models and pictures, from files, hubs and folders.  Nothing in the core imports it."""

from fxlrp.inputs.labels import find_class, imagenet_labels, load_labels
from fxlrp.inputs.models import LoadedModel, load_model
from fxlrp.inputs.pictures import Preprocess, find_pictures, open_picture, output_files

__all__ = ["LoadedModel", "Preprocess"]
__all__ += [
    "find_class",
    "find_pictures",
    "imagenet_labels",
    "load_labels",
    "load_model",
    "open_picture",
    "output_files",
]

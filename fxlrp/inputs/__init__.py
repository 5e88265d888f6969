"""What explanations are made of: models and pictures, from files, hubs and folders.  Nothing in the core imports it."""

from fxlrp.inputs.models import LoadedModel, load_model
from fxlrp.inputs.pictures import Preprocess, find_pictures, imagenet_labels, load_labels

__all__ = ["LoadedModel", "Preprocess", "find_pictures", "imagenet_labels", "load_labels", "load_model"]

"""Data sets. A torchvision data set is one YAML file in conf/dataset/."""

from dtp_lightning.data.image_folder import image_folder
from dtp_lightning.data.images import ImageData, ImageSpec, Split, Supervision, stratified
from dtp_lightning.data.labels import relabel
from dtp_lightning.data.mnist5k import mnist5k
from dtp_lightning.data.torchvision_images import torchvision_images

__all__ = [
    "ImageData",
    "ImageSpec",
    "Split",
    "Supervision",
    "image_folder",
    "mnist5k",
    "relabel",
    "stratified",
    "torchvision_images",
]

"""Data sets. A torchvision data set is one YAML file in conf/dataset/."""

from dtp_lightning.data.array_file import array_file
from dtp_lightning.data.huggingface import huggingface
from dtp_lightning.data.image_folder import image_folder
from dtp_lightning.data.images import ImageData, ImageSpec, Split, Supervision, stratified
from dtp_lightning.data.labels import relabel
from dtp_lightning.data.mnist5k import mnist5k
from dtp_lightning.data.tiny_imagenet import tiny_imagenet
from dtp_lightning.data.torchvision_images import torchvision_images

__all__ = [
    "ImageData",
    "ImageSpec",
    "Split",
    "Supervision",
    "array_file",
    "huggingface",
    "image_folder",
    "mnist5k",
    "relabel",
    "stratified",
    "tiny_imagenet",
    "torchvision_images",
]

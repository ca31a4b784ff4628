"""Data sets. A torchvision data set is one YAML file in conf/dataset/."""

from dtp_lightning.data.image_folder import image_folder
from dtp_lightning.data.images import ImageData, ImageSpec, Split, stratified
from dtp_lightning.data.mnist5k import mnist5k
from dtp_lightning.data.torchvision_images import torchvision_images

__all__ = ["ImageData", "ImageSpec", "Split", "image_folder", "mnist5k", "stratified", "torchvision_images"]

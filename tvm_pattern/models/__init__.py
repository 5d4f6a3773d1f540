"""Plain torch networks whose ``state_dict`` keys are torchvision's.

A torchvision checkpoint loads into them by ``load_state_dict``; torchvision itself is not needed.
Without a checkpoint the weights are random, but deterministic and scaled so that activations keep
their size from layer to layer: enough to measure speed and to check numerics.
"""

from .mobilenet import MobileNetV2, mobilenet_v2
from .resnet import ResNet, resnet50
from .vgg import VGG, vgg16, vgg16_bn

__all__ = [
    "VGG",
    "MobileNetV2",
    "ResNet",
    "mobilenet_v2",
    "resnet50",
    "vgg16",
    "vgg16_bn",
]

"""The architectures of the table, and how one is built with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import hugging_face

SIZE = 224


@dataclass(frozen=True)
class Architecture:
    """A public network.

    Parameters
    ----------
    source : str
        ``torchvision``, ``torchvision.segmentation``, ``torchvision.video``, ``timm``,
        ``transformers`` or ``ultralytics``.
    name : str
        Of its constructor there; of its class, of its configuration.
    least : int
        Smallest image that it takes; 0: any.
    fixed : int
        The only image size that it takes; 0: any.
    """

    source: str
    name: str
    least: int = 0
    fixed: int = 0

    @property
    def key(self) -> str:
        return f"{self.source}/{self.name}"

    def size(self, wanted: int) -> int:
        """Height and width to compile it for."""
        return self.fixed or max(self.least, wanted)

    def build(self, wanted: int = SIZE) -> Any:
        """The network in evaluation mode, with random weights and statistics.

        Parameters
        ----------
        wanted : int
            Height and width of its images, as of :meth:`size`: some networks are made for one.

        Raises
        ------
        ImportError
            If the package that has it is not installed.
        """
        import torch

        torch.manual_seed(0)
        if self.source == "timm":
            import_torchvision()
            import timm

            model = timm.create_model(self.name, pretrained=False)
        elif self.source == "transformers":
            import_torchvision()
            model = hugging_face.build(self.name, self.size(wanted))
        elif self.source == "ultralytics":
            model = _of_ultralytics(self.name)
        else:
            model = _of_torchvision(self.source, self.name)
        return with_random_statistics(model).eval()

    def example(self, wanted: int) -> Any:
        """An input of the network."""
        import torch

        size = self.size(wanted)
        shape = (1, 3, 8, size, size) if self.source.endswith("video") else (1, 3, size, size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _of_ultralytics(name: str) -> Any:
    """A network as ``YOLO.export`` prepares it: one tensor of boxes and scores."""
    import_torchvision()
    from ultralytics import YOLO

    model = YOLO(f"{name}.yaml").model.fuse()
    model.model[-1].export = True
    return model


def _of_torchvision(source: str, name: str) -> Any:
    models = import_torchvision().models
    package = getattr(models, source.partition(".")[2], models) if "." in source else models
    options: dict[str, Any] = {"weights": None}
    if source.endswith("segmentation"):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options.update(init_weights=True, aux_logits=True)
    return getattr(package, name)(**options)


def import_torchvision() -> Any:
    """torchvision, also where its compiled operators do not load because torch is for CPUs alone.

    Its models do not use them, but it declares shapes for two of them while it is imported.
    """
    import sys

    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _libraries.append(torch.library.Library("torchvision", "DEF"))
        for operator in ("nms", "qnms"):
            _libraries[-1].define(
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        import torchvision
    return torchvision


# A definition lasts as long as its library.
_libraries: list[Any] = []


def with_random_statistics(model: Any) -> Any:
    """Batch norms as after training: their fold is part of what is checked."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def _many(source: str, names: str, **options: int) -> list[Architecture]:
    return [Architecture(source, name, **options) for name in names.split()]


#: Small ones first, so that a run which is stopped has seen many kinds.
ZOO: list[Architecture] = [
    *_many("torchvision", "squeezenet1_1 resnet18 mobilenet_v2 mobilenet_v3_small mnasnet1_0"),
    *_many("torchvision", "shufflenet_v2_x1_0 regnet_y_400mf regnet_x_400mf"),
    *_many("torchvision", "googlenet alexnet", least=64),
    *_many("timm", "lcnet_050 tinynet_e mobilenetv4_conv_small repvgg_a0 ghostnet_100"),
    *_many("timm", "fbnetc_100 spnasnet_100 semnasnet_075 hardcorenas_a mobileone_s0 rexnet_100"),
    *_many("torchvision", "resnet34 resnet50 shufflenet_v2_x0_5 squeezenet1_0 mnasnet0_5"),
    *_many("timm", "resnet10t resnet14t seresnet18 seresnet34 mobilenetv1_100 mobilenetv2_050"),
    *_many("timm", "selecsls42b gernet_s dla34 lcnet_100 resnet26d skresnet18 convnext_atto"),
    *_many("torchvision", "resnet101 resnext50_32x4d wide_resnet50_2"),
    *_many("timm", "darknet53 ese_vovnet19b_dw hgnetv2_b0 efficientnet_lite0 starnet_s1"),
    *_many("timm", "mobilenetv3_small_050 regnetx_002 regnety_002 repvgg_a1 dla46_c"),
    *_many("timm", "cspresnet50 cspdarknet53 convnextv2_atto regnetz_b16 repghostnet_100"),
    *_many("timm", "poolformerv2_s12 mixnet_s resnest14d inception_next_atto resnetv2_50"),
    *_many("torchvision", "mobilenet_v3_large efficientnet_b0 densenet121 convnext_tiny"),
    *_many("torchvision.segmentation", "lraspp_mobilenet_v3_large fcn_resnet50"),
    *_many("torchvision.segmentation", "deeplabv3_mobilenet_v3_large"),
    *_many("timm", "ghostnetv2_100 edgenext_xx_small mobilevit_xxs fastvit_t8 efficientvit_b0"),
    *_many("torchvision", "vgg11_bn efficientnet_v2_s"),
    *_many("torchvision", "inception_v3", least=96),
    *_many("torchvision.video", "r3d_18"),
    *_many("timm", "hrnet_w18_small res2net50_26w_4s eca_nfnet_l0 dpn68"),
    *_many("timm", "tf_efficientnet_b0 gmixer_12_224"),
    *_many("timm", "xception41 inception_v4 inception_resnet_v2", least=96),
    *_many("timm", "vit_tiny_patch16_224 levit_128s", fixed=224),
    *_many("transformers", " ".join(hugging_face.CONFIGURATIONS)),
    *_many("ultralytics", "yolov8n yolo11n yolov8n-seg yolov8n-cls"),
]

"""Image models of Hugging Face's ``transformers``, narrow and shallow, from their configurations.

Widths and depths are small, so that a row takes minutes: the operators are those of the published
networks.
"""

from __future__ import annotations

from typing import Any

_FOUR = {"hidden_sizes": [16, 32, 64, 96], "depths": [1, 1, 1, 1]}
_RESNET = {"embedding_size": 16, **_FOUR}
_VIT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

#: Class of a model -> what differs from its default configuration.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ResNetForImageClassification": _RESNET,
    "ConvNextForImageClassification": _FOUR,
    "ConvNextV2ForImageClassification": _FOUR,
    "RegNetForImageClassification": {**_RESNET, "groups_width": 16},
    "SegformerForSemanticSegmentation": {**_FOUR, "decoder_hidden_size": 32},
    "PoolFormerForImageClassification": _FOUR,
    "MobileNetV1ForImageClassification": {"depth_multiplier": 0.5},
    "MobileNetV2ForImageClassification": {"depth_multiplier": 0.5},
    "MobileViTForImageClassification": {
        "hidden_sizes": [32, 48, 64],
        "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 128],
    },
    "LevitForImageClassification": {
        "hidden_sizes": [32, 64, 96],
        "depths": [1, 1, 1],
        "num_attention_heads": [2, 2, 2],
        "key_dim": [8, 8, 8],
    },
    "ViTForImageClassification": {**_VIT, "intermediate_size": 128},
    "SwinForImageClassification": {
        "embed_dim": 24,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "FocalNetForImageClassification": {"embed_dim": 24, "depths": [1, 1, 1, 1]},
    "DetrForObjectDetection": {
        "use_timm_backbone": False,
        "d_model": 32,
        "num_queries": 10,
        **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
    },
}


def build(name: str, size: int) -> Any:
    """The model of a class of ``transformers`` for images of ``size`` pixels.

    Raises
    ------
    ImportError
        If ``transformers`` is not installed.
    """
    import transformers

    kind = getattr(transformers, name)
    options = {"image_size": size, **CONFIGURATIONS[name]}
    if name == "DetrForObjectDetection":
        del options["image_size"]
        backbone = transformers.ResNetConfig(**_RESNET, out_features=["stage4"])
        options["backbone_config"] = backbone
    return kind(kind.config_class(**options))

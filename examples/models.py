"""The architectures of the example networks, untrained: `--arch examples/models.py:cnn` names one of them."""

from timm.layers import build_sincos2d_pos_embed
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

CLASSES = ("disc", "ring", "square", "triangle", "star", "cross", "heart", "crescent")  # those of shapes.py
SIZE = 64  # side of a picture in pixels


def _described(model: nn.Module) -> nn.Module:
    """The model with its preprocessing and class names on it, where timm keeps them."""
    half = (0.5, 0.5, 0.5)
    model.pretrained_cfg = {"input_size": (3, SIZE, SIZE), "mean": half, "std": half, "crop_pct": 1.0}
    model.pretrained_cfg |= {"interpolation": "bilinear", "label_names": list(CLASSES)}
    return model.eval()


def cnn() -> nn.Module:
    """A residual network with batch norm and ReLU; its last map is 8 x 8, one cell for 8 x 8 pixels."""
    widths = (32, 48, 64, 80)
    net = ResNet(
        BasicBlock, (1, 1, 1, 1), len(CLASSES), channels=widths, stem_type="deep", stem_width=16, output_stride=8
    )
    return _described(net)


def vit() -> nn.Module:
    """A vision transformer on 8 x 8 tokens of 8 x 8 pixels, whose mean is classified."""
    tokens = {"class_token": False, "global_pool": "avg", "fc_norm": False, "final_norm": True, "weight_init": "moco"}
    net = VisionTransformer(
        SIZE, 8, num_classes=len(CLASSES), embed_dim=96, depth=4, num_heads=3, mlp_ratio=2, **tokens
    )
    # Waves that tell neighbouring tokens apart; learned from there.
    net.pos_embed.data = build_sincos2d_pos_embed([SIZE // 8, SIZE // 8], 96, temperature=10.0)[None]
    return _described(net)


def deep_vit() -> nn.Module:
    """A vision transformer of twelve blocks with a class token, which is classified: as ViT-B, but of width 96."""
    net = VisionTransformer(
        SIZE, 8, num_classes=len(CLASSES), embed_dim=96, depth=12, num_heads=3, mlp_ratio=2, weight_init="moco"
    )
    waves = build_sincos2d_pos_embed([SIZE // 8, SIZE // 8], 96, temperature=10.0)
    net.pos_embed.data[0, 1:] = waves
    return _described(net)


def deep_convnext() -> nn.Module:
    """A ConvNeXt of twelve blocks: depthwise convolutions, layer norm, GELU; its last map is 8 x 8."""
    shape = {"depths": (2, 6, 2, 2), "dims": (48, 96, 96, 96), "kernel_sizes": (7, 5, 3, 3), "output_stride": 8}
    return _described(ConvNeXt(num_classes=len(CLASSES), ls_init_value=0.1, **shape))


def deep_swin() -> nn.Module:
    """A Swin transformer of twelve blocks, with windows of 4 x 4 tokens that are shifted; its last map is 8 x 8."""
    shape = {"embed_dim": 48, "depths": (2, 10), "num_heads": (2, 4), "window_size": 4, "mlp_ratio": 2}
    return _described(SwinTransformer(SIZE, num_classes=len(CLASSES), drop_path_rate=0.0, **shape))

"""The architectures of the example networks, untrained: `--arch examples/models.py:cnn` names one of them."""

from itertools import pairwise

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

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


class Detector(nn.Module):
    """Finds objects: each cell of a map says what has its middle there and where that object's sides are."""

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.hidden = nn.Conv2d(width, width, 3, padding=1)
        self.what, self.sides = nn.Conv2d(width, len(CLASSES), 1), nn.Conv2d(width, 4, 1)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, classes, 8, 8] and how far the sides are from each cell's middle [B, 4, 8, 8], in pixels."""
        hidden = self.hidden(self.trunk.forward_features(x)).relu()
        return self.what(hidden), 8 * F.softplus(self.sides(hidden))

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Boxes [N, 4], scores [N] and labels [N] for each picture, as torchvision's detectors return them."""
        found = []
        for scores, sides in zip(*self.maps(x), strict=True):
            scores = scores.sigmoid()
            highest = scores == F.max_pool2d(scores.amax(0, keepdim=True), 3, 1, 1)  # beside all others
            label, row, column = (highest & (scores > 0.3)).nonzero().unbind(1)
            middle, reach = 8 * torch.stack([column, row], 1) + 4, sides[:, row, column].T
            boxes = torch.cat([middle - reach[:, :2], middle + reach[:, 2:]], 1)
            found.append({"boxes": boxes, "scores": scores[label, row, column], "labels": label})
        return found


def detector() -> nn.Module:
    """A detector without anchors on the residual network of `cnn`."""
    trunk = cnn()
    model = Detector(trunk, trunk.num_features)
    nn.init.constant_(model.what.bias, -3.0)  # most cells have nothing in them
    return _described(model)


class Segmenter(nn.Module):
    """Says what each pixel is, background first: a U-Net, which halves the picture three times and doubles it again."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 48, 64)) -> None:
        super().__init__()
        self.down = nn.ModuleList(_twice(a, b) for a, b in pairwise((3, *widths)))
        self.up = nn.ModuleList(_twice(a + b, a) for a, b in [*pairwise(widths)][::-1])
        self.head = nn.Conv2d(widths[0], len(CLASSES) + 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [B, 1 + classes, 64, 64]."""
        kept = []
        for block in self.down:
            x = block(F.max_pool2d(x, 2) if kept else x)
            kept.append(x)
        for block, finer in zip(self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="bilinear"), finer], 1))
        return self.head(x)


def _twice(a: int, b: int) -> nn.Module:
    """Two convolutions with batch norm and ReLU."""
    first = nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()
    return nn.Sequential(*first, nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())


def segmenter() -> nn.Module:
    """A U-Net of 0.2 million parameters."""
    model = _described(Segmenter())
    model.pretrained_cfg["label_names"] = ["background", *CLASSES]
    return model

"""Convolutional networks, segmentation and detection heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.situation_models import Case, Net, case, mlp, param, randn


@case("vision")
def residual_network() -> Case:
    """Residual blocks with batch norm, in-place ReLU and += , a stride, an average"""

    class Block(Net):
        def forward(self, x: Tensor) -> Tensor:
            out = self.act(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            out += self.down(x)
            return self.act(out)

    def block(a: int, b: int) -> Block:
        parts = {"conv1": nn.Conv2d(a, b, 3, 2, 1, bias=False), "bn1": nn.BatchNorm2d(b), "bn2": nn.BatchNorm2d(b)}
        down = nn.Sequential(nn.Conv2d(a, b, 1, 2, bias=False), nn.BatchNorm2d(b))
        return Block(conv2=nn.Conv2d(b, b, 3, padding=1, bias=False), act=nn.ReLU(inplace=True), down=down, **parts)

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    return Case(nn.Sequential(block(3, 4), block(4, 6), head), (randn(2, 3, 8, 8),))


@case("vision")
def plain_network_without_biases() -> Case:
    """Convolutions, leaky ReLU and pooling without any bias"""
    layers = (nn.Conv2d(3, 4, 3, bias=False), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2, bias=False))
    model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3, bias=False))
    return Case(model, (randn(2, 3, 8, 8),), conserves=True)


@case("vision")
def u_net() -> Case:
    """A U-Net: pooling with its indices undone, skips concatenated, one pixel's class asked for"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            a = F.relu(self.one(x))
            small, at = F.max_pool2d(a, 2, return_indices=True)
            b = F.relu(self.two(small))
            up = torch.cat([F.max_unpool2d(b, at, 2), self.up(b), a], 1)
            return self.head(up)

    parts = {"one": nn.Conv2d(1, 4, 3, padding=1), "two": nn.Conv2d(4, 4, 3, padding=1)}
    model = M(up=nn.ConvTranspose2d(4, 4, 2, 2), head=nn.Conv2d(12, 3, 1), **parts)
    return Case(model, (randn(2, 1, 6, 6),), target=1, asked={"position": (3, 2)}, score=lambda y: y[:, 1, 3, 2])


@case("vision")
def segmentation_resized() -> Case:
    """Dilated convolutions, a pyramid pooled and resized to the picture's size, in a dict"""

    class M(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = F.relu(self.conv(x))
            pooled = F.interpolate(F.adaptive_avg_pool2d(h, 2), h.shape[-2:], mode="bilinear", align_corners=False)
            y = self.head(torch.cat([h, pooled], 1))
            return {"out": F.interpolate(y, x.shape[-2:], mode="bicubic"), "aux": h}

    model = M(conv=nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2), head=nn.Conv2d(8, 3, 1))
    return Case(model, (randn(2, 3, 8, 8),), target=lambda out: out["out"][:, 1].mean((1, 2)))


@case("vision")
def grid_detector() -> Case:
    """A one-stage detector: boxes decoded on a grid with exponentials, classes with sigmoids, all in one tensor"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            p = self.net(x)
            b, _, h, w = p.shape
            p = p.view(b, 7, h * w).transpose(1, 2)
            ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            at = torch.stack([xs, ys], -1).view(1, -1, 2)
            return torch.cat([p[..., :2].sigmoid() + at, p[..., 2:4].exp(), p[..., 4:].sigmoid()], -1)

    model = M(net=nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.SiLU(), nn.Conv2d(6, 7, 1)))
    return Case(model, (randn(2, 3, 9, 9),), target=lambda out: out[:, 5, 6])


@case("vision")
def two_stage_detector() -> Case:
    """Features of regions by roi_align, class scores of every region, boxes an argument"""
    import torchvision

    class M(Net):
        def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
            regions = torchvision.ops.roi_align(F.relu(self.conv(x)), [boxes[i] for i in range(len(x))], 3, 0.5)
            return self.head(regions.flatten(1)).view(len(x), -1, 3)

    boxes = torch.tensor([[[0.0, 0, 6, 6], [2, 2, 8, 8]], [[1.0, 0, 7, 4], [0, 3, 8, 8]]])
    model = M(conv=nn.Conv2d(3, 4, 3, 2, 1), head=nn.Linear(36, 3))
    return Case(model, (randn(2, 3, 9, 9), boxes), target=lambda y: y[:, 1, 2], quiet=("1",))


@case("vision")
def detector_with_suppression() -> Case:
    """Non-maximum suppression, an answer for each picture in a list of dicts"""
    import torchvision

    class M(Net):
        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
            p = self.net(x).flatten(2).transpose(1, 2)
            answers = []
            for row in p:
                boxes, scores = torch.cat([row[:, :2], row[:, :2] + row[:, 2:4].exp()], 1), row[:, 4].sigmoid()
                keep = torchvision.ops.nms(boxes, scores, 0.5)
                answers.append({"boxes": boxes[keep], "scores": scores[keep]})
            return answers

    model = M(net=nn.Sequential(nn.Conv2d(3, 6, 3, 3), nn.ReLU(), nn.Conv2d(6, 5, 1)))
    return Case(model, (randn(1, 3, 9, 9),), target=lambda out: out[0]["scores"][:1], axis=None)


@case("vision")
def pictures_in_a_list() -> Case:
    """Pictures of several sizes in a list, each resized and normed, as torchvision's detectors take them"""

    class M(Net):
        def forward(self, pictures: list[Tensor]) -> Tensor:
            same = [F.interpolate(p[None], (8, 8), mode="bilinear")[0] for p in pictures]
            return self.net((torch.stack(same) - 0.5) / 0.25)

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    return Case(M(net=net), ([torch.rand(3, 7, 9), torch.rand(3, 10, 6)],), axis="list")


@case("vision")
def deformable_convolution() -> Case:
    """A deformable convolution with offsets and a mask made of the input"""
    import torchvision

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            off, mask = self.offsets(x).split([18, 9], 1)
            h = torchvision.ops.deform_conv2d(x, off, self.weight, padding=1, mask=mask.sigmoid())
            return self.head(F.relu(h).mean((2, 3)))

    model = M(offsets=nn.Conv2d(3, 27, 3, padding=1), weight=param(4, 3, 3, 3), head=nn.Linear(4, 3))
    return Case(model, (randn(2, 3, 6, 6),))


@case("vision")
def spatial_transformer() -> Case:
    """A spatial transformer: affine_grid and grid_sample by a matrix made of the input"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            theta = self.where(x.flatten(1)).view(-1, 2, 3) * 0.1 + torch.eye(2, 3)
            return self.net(F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False))

    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return Case(M(where=nn.Linear(36, 6), net=net), (randn(2, 1, 6, 6),))


@case("vision")
def windows_shifted() -> Case:
    """Attention in shifted windows: rolled, folded into the batch by reshapes, and back"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            b, h, w, c = x.shape
            y = x.roll((-1, -1), (1, 2)).view(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
            q, k, v = self.qkv(self.norm(y)).chunk(3, -1)
            y = (q @ k.mT / c**0.5).softmax(-1) @ v
            y = y.view(b, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(b, h, w, c).roll((1, 1), (1, 2))
            return self.head((x + y).mean((1, 2)))

    return Case(M(qkv=nn.Linear(6, 18), norm=nn.LayerNorm(6), head=nn.Linear(6, 3)), (randn(2, 4, 4, 6),))


@case("vision")
def patches_and_pixel_shuffle() -> Case:
    """Patches by unfold, put together by fold, channels shuffled, and made larger by pixel_shuffle"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            p = F.relu(self.mix(F.unfold(x, 2, stride=2).mT).mT)
            y = F.fold(p, x.shape[-2:], 2, stride=2)
            y = F.channel_shuffle(F.pixel_shuffle(y, 2).repeat(1, 4, 1, 1), 2)
            return self.head(y.mean((2, 3)))

    return Case(M(mix=nn.Linear(16, 16), head=nn.Linear(4, 3)), (randn(2, 4, 6, 6),))


@case("vision")
def gated_channels() -> Case:
    """Squeeze and excite, depthwise convolution, hard swish, group norm, GLU over channels"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = F.hardswish(self.norm(self.depth(self.into(x))))
            h = h * F.hardsigmoid(self.out(F.relu(self.squeeze(h.mean((2, 3), keepdim=True)))))
            return self.head(F.glu(h, 1).amax((2, 3)))

    parts = {"into": nn.Conv2d(3, 8, 1), "depth": nn.Conv2d(8, 8, 3, groups=8), "norm": nn.GroupNorm(2, 8)}
    parts |= {"squeeze": nn.Conv2d(8, 2, 1), "out": nn.Conv2d(2, 8, 1), "head": nn.Linear(4, 3)}
    return Case(M(**parts), (randn(2, 3, 6, 6),))


@case("vision")
def style_modulation() -> Case:
    """Convolution weights made per sample from a style vector: one grouped convolution over the whole batch"""

    class M(Net):
        def forward(self, x: Tensor, style: Tensor) -> Tensor:
            b, c, h, w = x.shape
            weight = self.weight * (self.affine(style).view(b, 1, c, 1, 1) + 1)
            weight = weight * torch.rsqrt(weight.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
            y = F.conv2d(x.reshape(1, b * c, h, w), weight.flatten(0, 1), padding=1, groups=b)
            return self.head(F.leaky_relu(y.view(b, -1, h, w)).mean((2, 3)))

    model = M(weight=param(1, 4, 3, 3, 3), affine=nn.Linear(5, 3), head=nn.Linear(4, 2))
    return Case(model, (randn(2, 3, 6, 6), randn(2, 5)))


@case("vision")
def capsules() -> Case:
    """Capsules: votes, routing by agreement three times, lengths as the answer"""

    class M(Net):
        def squash(self, s: Tensor) -> Tensor:
            n = s.pow(2).sum(-1, keepdim=True)
            return n / (1 + n) * s / (n + 1e-8).sqrt()

        def forward(self, x: Tensor) -> Tensor:
            u = self.squash(self.conv(x).view(len(x), -1, 4))
            votes = torch.einsum("bid,iodk->biok", u, self.w)
            logits = torch.zeros(votes.shape[:3]).to(x)
            for _ in range(3):
                v = self.squash((logits.softmax(2)[..., None] * votes).sum(1))
                logits = logits + (votes * v[:, None]).sum(-1)
            return v.norm(dim=-1)

    return Case(M(conv=nn.Conv2d(1, 8, 3), w=param(8, 3, 4, 4)), (randn(2, 1, 4, 4),))


@case("vision")
def video() -> Case:
    """Convolutions over time and space, frames folded into the batch, an LSTM over them"""

    class M(Net):
        def forward(self, clip: Tensor) -> Tensor:
            b, t = clip.shape[:2]
            h = F.relu(self.frame(clip.flatten(0, 1))).mean((2, 3)).view(b, t, -1)
            both = torch.cat([self.rnn(h)[1][-1], F.relu(self.whole(clip.transpose(1, 2))).amax((2, 3, 4))], 1)
            return self.head(both)

    parts = {"frame": nn.Conv2d(3, 4, 3), "whole": nn.Conv3d(3, 4, 2), "rnn": nn.GRU(4, 5, batch_first=True)}
    return Case(M(head=nn.Linear(9, 3), **parts), (randn(2, 3, 3, 5, 5),))


@case("vision")
def matched_queries() -> Case:
    """A set detector: learned queries through a decoder, logits and boxes in a dict"""

    class M(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            memory = self.conv(x).flatten(2).mT
            h = self.decoder(self.queries.expand(len(x), -1, -1), memory)
            return {"pred_logits": self.classes(h), "pred_boxes": self.boxes(h).sigmoid()}

    decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
    parts = {"conv": nn.Conv2d(3, 8, 3, 2), "queries": param(1, 4, 8), "classes": nn.Linear(8, 3)}
    model = M(decoder=decoder, boxes=mlp(8, 8, 4), **parts)
    return Case(model, (randn(2, 3, 7, 7),), target=lambda out: out["pred_logits"][:, 2, 1])


@case("vision")
def attention_pooling_of_a_bag() -> Case:
    """Multiple instances: a slide's tiles weighted by gated attention, one slide a call"""

    class M(Net):
        def forward(self, tiles: Tensor) -> tuple[Tensor, Any]:
            h = F.relu(self.net(tiles))
            a = self.w(torch.tanh(self.v(h)) * torch.sigmoid(self.u(h))).T.softmax(1)
            return self.head(a @ h), a

    model = M(net=nn.Linear(6, 8), v=nn.Linear(8, 4), u=nn.Linear(8, 4), w=nn.Linear(4, 1), head=nn.Linear(8, 2))
    return Case(model, (randn(5, 6),), axis=None)

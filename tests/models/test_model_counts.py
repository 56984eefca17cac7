"""Parameters and MACs: the exact integers, and the rounded figures that were published for the same networks.

Sources publish under three conventions, each named where it is used:

- plain: every parameter; multiply-accumulates of convolutions and linear layers, nothing else. What Prunus reports.
- "no BatchNorm": parameters without BatchNorm's weights and biases (HRank, HRankPlus).
- "with BatchNorm": MACs plus one for each bias added by a convolution and two for each element that BatchNorm
  normalises, as the `thop` counter had it (AutoBot).

No published MAC count was found for this SqueezeNet, nor one under these conventions for ResNet-110 with projection
shortcuts: the exact integers alone hold those. Two of HRankPlus's figures fit no convention and are left out: 313.73 M
MACs for VGG-16 (AutoBot's 314.294 M for the same network agrees to the last digit) and 282.00 M for DenseNet-40
(AutoBot's 287.71 M agrees).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunus.models import MODELS, build_model

CHENYAOFO = "github.com/chenyaofo/pytorch-cifar-models, README, model zoo"
HE = "He et al. 2016, arXiv 1512.03385, table 6"
HRANKPLUS = "github.com/lmbxmu/HRankPlus, README, CIFAR-10 baselines"
AUTOBOT = "github.com/nota-github/autobot_AAAI23, README, initial MFLOPs"
PYTORCHCV = "github.com/osmr/imgclsmob, gluon/README.md, CIFAR-10"
SLIMMING = "github.com/Eric-mingjie/network-slimming, README, CIFAR10-Vgg"
DA2LITE = "github.com/da2so/DA2Lite, model_zoo/README.md"
WEIAICUNZAI = "github.com/weiaicunzai/pytorch-cifar100, README, results"

EXACT = {  # name: (parameters, MACs) for 10 classes and one 3×32×32 image
    "vgg16_bn": (14_991_946, 313_463_808),
    "vgg19_bn": (20_040_522, 398_136_320),
    "googlenet": (6_166_250, 1_521_756_160),
    "resnet8": (78_042, 12_501_632),
    "resnet20": (272_474, 40_813_184),
    "resnet32": (466_906, 69_124_736),
    "resnet44": (661_338, 97_436_288),
    "resnet56": (855_770, 125_747_840),
    "resnet110": (1_730_714, 253_149_824),
    "resnet8_pad": (75_290, 12_239_488),
    "resnet20_pad": (269_722, 40_551_040),
    "resnet32_pad": (464_154, 68_862_592),
    "resnet44_pad": (658_586, 97_174_144),
    "resnet56_pad": (853_018, 125_485_696),
    "resnet110_pad": (1_727_962, 252_887_680),
    "mobilenetv2": (2_236_682, 87_976_448),
    "mobilenetv2_half": (587_178, 23_688_448),
    "shufflenetv2": (1_263_854, 45_002_112),
    "densenet40": (1_059_298, 282_917_328),
    "squeezenet": (734_986, 52_543_488),
}

PUBLISHED = [  # (name, classes, what, figure as printed, source)
    ("vgg16_bn", 10, "params, no BatchNorm", "14.98 M", HRANKPLUS),
    ("vgg16_bn", 10, "macs, with BatchNorm", "314.294 M", AUTOBOT),
    ("vgg19_bn", 10, "params", "20.04 M", SLIMMING),
    ("vgg19_bn", 10, "macs", "0.40 G", DA2LITE),
    ("googlenet", 10, "params, no BatchNorm", "6.15 M", HRANKPLUS),
    ("googlenet", 10, "macs", "1.52 G", HRANKPLUS),
    ("googlenet", 10, "macs, with BatchNorm", "1529.42 M", AUTOBOT),
    ("resnet20", 10, "params", "272474", PYTORCHCV),
    ("resnet56", 10, "params", "855770", PYTORCHCV),
    ("resnet110", 10, "params", "1730714", PYTORCHCV),
    ("resnet20", 10, "params", "0.27 M", CHENYAOFO),
    ("resnet20", 10, "macs", "40.81 M", CHENYAOFO),
    ("resnet32", 10, "params", "0.47 M", CHENYAOFO),
    ("resnet32", 10, "macs", "69.12 M", CHENYAOFO),
    ("resnet44", 10, "params", "0.66 M", CHENYAOFO),
    ("resnet44", 10, "macs", "97.44 M", CHENYAOFO),
    ("resnet56", 10, "params", "0.86 M", CHENYAOFO),
    ("resnet56", 10, "macs", "125.75 M", CHENYAOFO),
    ("resnet20", 100, "params", "0.28 M", CHENYAOFO),
    ("resnet20", 100, "macs", "40.82 M", CHENYAOFO),
    ("resnet32", 100, "macs", "69.13 M", CHENYAOFO),
    ("resnet44", 100, "params", "0.67 M", CHENYAOFO),
    ("resnet56", 100, "macs", "125.75 M", CHENYAOFO),
    ("resnet20_pad", 10, "params", "0.27 M", HE),
    ("resnet32_pad", 10, "params", "0.46 M", HE),
    ("resnet44_pad", 10, "params", "0.66 M", HE),
    ("resnet56_pad", 10, "params", "0.85 M", HE),
    ("resnet110_pad", 10, "params", "1.7 M", HE),
    ("resnet56_pad", 10, "macs", "125.49 M", HRANKPLUS),
    ("resnet56_pad", 10, "macs, with BatchNorm", "126.55 M", AUTOBOT),
    ("resnet110_pad", 10, "params, no BatchNorm", "1.72 M", HRANKPLUS),
    ("resnet110_pad", 10, "macs", "252.89 M", HRANKPLUS),
    ("mobilenetv2", 10, "params", "2.24 M", CHENYAOFO),
    ("mobilenetv2", 10, "macs", "87.98 M", CHENYAOFO),
    ("mobilenetv2", 100, "params", "2.35 M", CHENYAOFO),
    ("mobilenetv2", 100, "macs", "88.09 M", CHENYAOFO),
    ("shufflenetv2", 10, "params", "1.26 M", CHENYAOFO),
    ("shufflenetv2", 10, "macs", "45.00 M", CHENYAOFO),
    ("shufflenetv2", 100, "params", "1.36 M", CHENYAOFO),
    ("shufflenetv2", 100, "macs", "45.09 M", CHENYAOFO),
    ("densenet40", 10, "params, no BatchNorm", "1.04 M", HRANKPLUS),
    ("densenet40", 10, "macs, with BatchNorm", "287.71 M", AUTOBOT),
    ("squeezenet", 100, "params", "0.78 M", WEIAICUNZAI),
]

UNITS = {"": 1, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class Counts:
    params: int
    norm_params: int
    macs: int
    biases: int  # elements that convolutions add a bias to
    normalised: int  # elements that BatchNorm normalises

    def under(self, convention: str) -> int:
        return {
            "params": self.params,
            "params, no BatchNorm": self.params - self.norm_params,
            "macs": self.macs,
            "macs, with BatchNorm": self.macs + self.biases + 2 * self.normalised,
        }[convention]


@cache
def count(name: str, num_classes: int) -> Counts:
    elements = {"biases": 0, "normalised": 0}

    def watch(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            elements["normalised"] += output.numel()
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            elements["biases"] += output.numel()

    with torch.device("meta"):
        model = build_model(name, num_classes=num_classes).eval()
        images = torch.empty(1, 3, 32, 32)
    for module in model.modules():
        module.register_forward_hook(watch)
    with FlopCounterMode(display=False) as counter:
        model(images)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    return Counts(
        params=sum(parameter.numel() for parameter in model.parameters()),
        norm_params=sum(parameter.numel() for norm in norms for parameter in norm.parameters()),
        macs=counter.get_total_flops() // 2,
        **elements,
    )


def test_every_model_has_an_exact_count() -> None:
    assert EXACT.keys() == MODELS.keys()


@pytest.mark.parametrize("name", EXACT)
def test_counts_are_exactly_these(name: str) -> None:
    counts = count(name, 10)
    assert (counts.params, counts.macs) == EXACT[name]


@pytest.mark.parametrize(
    ("name", "num_classes", "convention", "figure", "source"),
    PUBLISHED,
    ids=[f"{name}-{num_classes}-{convention}" for name, num_classes, convention, *_ in PUBLISHED],
)
def test_counts_round_to_the_published_figure(
    name: str, num_classes: int, convention: str, figure: str, source: str
) -> None:
    number, _, unit = figure.partition(" ")
    decimals = len(number.partition(".")[2])
    counted = count(name, num_classes).under(convention)
    assert f"{counted / UNITS[unit]:.{decimals}f}" == number, f"{counted:,} is not {figure} of {source}"

"""What a student learns only to be compared with a teacher: from its features to the teacher's. Dropped at export."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True)
class Head:
    """The linear layer by which a teacher tells classes apart: it stays as it is."""

    weight: Tensor  # (K, C)
    bias: Tensor  # (K,)


@dataclass(frozen=True)
class Connector(ABC):
    """A module from features (B, T, H, W, Cs) to (B, T, H, W, Ct), described."""

    needs_head: ClassVar[bool] = False
    """Whether it passes through the teacher's last layer."""

    @abstractmethod
    def build(self, student: int, teacher: int, head: Head | None) -> nn.Module:
        """The module.

        Args:
            student: channels of the student's features.
            teacher: of the teacher's.
            head: the teacher's last layer, for those that need it.
        """


@dataclass(frozen=True)
class Linear(Connector):
    """One linear layer, channel by channel: enough where the student is not far narrower than the teacher."""

    def build(self, student: int, teacher: int, head: Head | None) -> nn.Module:
        """See `Connector.build`."""
        return nn.Linear(student, teacher)


@dataclass(frozen=True)
class MLP(Connector):
    """Two linear layers, for a student far narrower than its teacher (under a quarter)."""

    def build(self, student: int, teacher: int, head: Head | None) -> nn.Module:
        """See `Connector.build`."""
        return nn.Sequential(nn.Linear(student, teacher), nn.LayerNorm(teacher), nn.GELU(), nn.Linear(teacher, teacher))


@dataclass(frozen=True)
class ConvNorm(Connector):
    """A 1x1x1 convolution and batch normalisation, the regressor of FitNets [Romero et al. 2015] and others."""

    relu: bool = False
    """Whether a ReLU follows: for taps of the teacher that come after one."""

    def build(self, student: int, teacher: int, head: Head | None) -> nn.Module:
        """See `Connector.build`."""
        return _ConvNorm(student, teacher, relu=self.relu)


@dataclass(frozen=True)
class Variational(Connector):
    """Mean and variance of the teacher's features given the student's [VID, Ahn et al. 2019], side by side: 2 Ct
    channels. The variance is learned for every channel and is the same for all clips."""

    initial: float = 5.0
    """The variance at first."""

    def build(self, student: int, teacher: int, head: Head | None) -> nn.Module:
        """See `Connector.build`."""
        return _Variational(student, teacher, self.initial)


@dataclass(frozen=True)
class MaskedGeneration(Connector):
    """The teacher's features generated from the student's, of which a share of the channels is hidden [MGD, Yang et
    al. 2022]: two 3x3 convolutions over space."""

    share: float = 0.15
    """Of the channels, hidden anew for every clip."""

    def build(self, student: int, teacher: int, head: Head | None) -> nn.Module:
        """See `Connector.build`."""
        return _MaskedGeneration(student, teacher, self.share)


@dataclass(frozen=True)
class ThroughHead(Connector):
    """A regressor (`ConvNorm`) to the teacher's features and what the teacher's own last layer says of them [SRRL,
    Yang et al. 2021], side by side: Ct + K channels."""

    needs_head: ClassVar[bool] = True
    relu: bool = True
    """Whether the regressor ends in a ReLU."""

    def build(self, student: int, teacher: int, head: Head | None) -> nn.Module:
        """See `Connector.build`."""
        assert head is not None
        return _ThroughHead(ConvNorm(self.relu).build(student, teacher, None), head)


class _ConvNorm(nn.Module):
    """Maps (B, T, H, W, Cs) to (B, T, H, W, Ct). The norm is torch's own, so that it can be synchronised over processes
    like any other: channels are its second dimension."""

    def __init__(self, student: int, teacher: int, *, relu: bool) -> None:
        super().__init__()
        self.conv = nn.Linear(student, teacher, bias=False)
        self.norm = nn.BatchNorm1d(teacher)
        self.activation = nn.ReLU() if relu else nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        mapped: Tensor = self.conv(values)
        rows = mapped.flatten(0, -2)  # (B T H W, Ct)
        if self.training and len(rows) < 2 and not getattr(self.norm, "synchronised", False):
            # One vector has no variance: the running statistics stand in for its own.
            norm = self.norm
            rows = F.batch_norm(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            rows = self.norm(rows)
        activated: Tensor = self.activation(rows)
        return activated.view(mapped.shape)


class _Variational(nn.Module):
    def __init__(self, student: int, teacher: int, initial: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Linear(student, teacher, bias=False),
            nn.ReLU(),
            nn.Linear(teacher, teacher, bias=False),
            nn.ReLU(),
            nn.Linear(teacher, teacher, bias=False),
        )
        self.floor = 1e-5
        # softplus of it is the variance.
        self.scale = nn.Parameter(torch.full((teacher,), math.log(math.expm1(initial - self.floor))))

    def forward(self, values: Tensor) -> Tensor:
        mean = self.mean(values)
        variance = F.softplus(self.scale.float()) + self.floor
        return torch.cat([mean.float(), variance.expand(mean.shape)], dim=-1)


class _MaskedGeneration(nn.Module):
    def __init__(self, student: int, teacher: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.align = nn.Linear(student, teacher) if student != teacher else nn.Identity()
        self.generate = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(teacher, teacher, 3, padding=1)
        )

    def forward(self, values: Tensor) -> Tensor:
        aligned: Tensor = self.align(values)
        clips, steps, _, _, channels = aligned.shape
        # What is left is not scaled up, as dropout would.
        kept = torch.rand(clips, 1, 1, 1, channels, device=aligned.device) >= self.share
        generated: Tensor = self.generate(rearrange(aligned * kept, "b t h w c -> (b t) c h w"))
        return rearrange(generated, "(b t) c h w -> b t h w c", t=steps)


class _ThroughHead(nn.Module):
    weight: Tensor
    bias: Tensor

    def __init__(self, regress: nn.Module, head: Head) -> None:
        super().__init__()
        self.regress = regress
        self.register_buffer("weight", head.weight.detach().clone())
        self.register_buffer("bias", head.bias.detach().clone())

    def forward(self, values: Tensor) -> Tensor:
        features = self.regress(values)
        return torch.cat([features, F.linear(features, self.weight, self.bias)], dim=-1)

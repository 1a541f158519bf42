"""A kind of model: energies of oriented filters, behind one BatchNorm layer."""

import torch
from torch import nn

from tta_bench.models import ModelConfig, Network


class Energies(nn.Module):
    """Two filters, a quarter wave apart, for each of four orientations."""

    def __init__(self, size: int):
        super().__init__()
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        angles = torch.arange(4.0)[:, None, None] * torch.pi / 4
        phases = 0.9 * (x * angles.cos() + y * angles.sin())
        kernels = torch.cat([phases.sin(), phases.cos()])[:, None].repeat(1, 3, 1, 1)
        self.filters = nn.Conv2d(3, 8, size, bias=False)
        self.filters.weight = nn.Parameter(kernels / size**2)
        self.norm, self.num_classes = nn.BatchNorm2d(8), 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * self.norm(self.filters(x)).square().mean((2, 3)).view(-1, 2, 4).sum(1)


class Filters(Network):
    name = "filters"

    class Config(ModelConfig):
        size: int = 9

    def build(self) -> nn.Module:
        return Energies(self.config.size).eval()

    def classifier(self, net: nn.Module) -> nn.Module:
        return net.norm

    def normalisation(self, net: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

"""Writes the .pth files of this folder with PyTorch: python make_pth.py (made with torch 2.15)."""
import torch
from torch import nn


def numbered(*shape, first=0.0):
    """first, first + 1/8, first + 2/8, … in row-major order."""
    count = torch.Size(shape).numel()
    return (first + torch.arange(count, dtype=torch.float64) / 8).float().reshape(shape)


# A norm-attention model under the published names: 1 layer, D 4, S 2, 2 heads, 5 tokens, convolution of 3.
SHAPES = {
    "encoder.word_embeddings.weight": (5, 4),
    "layers.0.norm.weight": (4,),
    "layers.0.norm.bias": (4,),
    "layers.0.attention.Wvqkn.weight": (10, 4),
    "layers.0.attention.Wvqkn.bias": (10,),
    "layers.0.attention.conv1d.weight": (8, 1, 3),
    "layers.0.attention.conv1d.bias": (8,),
    "layers.0.attention.inner_attn.offset": (2,),
    "layers.0.attention.out_proj.weight": (4, 4),
    "layers.0.attention.out_proj.bias": (4,),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "decoder.weight": (5, 4),
}


class Tree(nn.Module):
    """A module whose parameters have the names of SHAPES."""

    def __init__(self):
        super().__init__()
        for i, (name, shape) in enumerate(SHAPES.items()):
            node = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(node, part):
                    node.add_module(part, nn.Module())
                node = getattr(node, part)
            node.register_parameter(leaf, nn.Parameter(numbered(*shape, first=i)))
        self.encoder.register_buffer("position_ids", torch.arange(3))


model = Tree()
torch.save(model.state_dict(), "state_dict.pth")
torch.save(model.state_dict(), "before_1_6.pth", _use_new_zipfile_serialization=False)
torch.save(nn.Linear(2, 2), "module.pth")

# What a trainer keeps: the model of a DistributedDataParallel, the optimiser, numbers.
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
sum(p.sum() for p in model.parameters()).backward()
optimiser.step()
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10)
with torch.no_grad():
    for i, p in enumerate(model.parameters()):
        p.copy_(numbered(*p.shape, first=i))
torch.save(
    {
        "epoch": 7,
        "big": 1 << 40,
        "negative": -(1 << 40),
        "best": None,
        "loss": 0.25,
        "done": True,
        "model_state_dict": {"module." + k: v for k, v in model.state_dict().items()},
        "optimizer_state_dict": optimiser.state_dict(),
        "scheduler": schedule.state_dict(),
    },
    "trainer.pth",
)

# Every layout and type; protocol 4 has other opcodes.
table = numbered(6, 5)
tensors = {
    "whole": table,
    "transposed": table.t(),
    "rows": table[2:4],
    "every_second": table[::2, 1::2],
    "expanded": table[1, :3].expand(2, 3),
    "scalar": table[3, 3],
    "empty": table[:0],
    "_orig_mod.parameter": nn.Parameter(numbered(2, 3, first=-1)),
    "half": torch.tensor([0.0, -0.0, 1.5, -2.25, 65504.0, 2.0**-24, float("inf")], dtype=torch.float16),
    "bfloat16": torch.tensor([1.5, -3.0, 2.0**100], dtype=torch.bfloat16),
    "double": torch.tensor([0.1, -1e300], dtype=torch.float64),
    "long": torch.tensor([[1 << 40, -2]]),
    "int": torch.tensor([7, -8], dtype=torch.int32),
    "byte": torch.tensor([0, 255], dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
}
torch.save(tensors, "layouts.pth")
torch.save(tensors, "layouts_protocol_4.pth", pickle_protocol=4)

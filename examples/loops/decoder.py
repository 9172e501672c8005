"""A small decoder that knows nothing of prefkit or transformers: a body, and a head beside it."""

import torch
from torch import nn
from torch.nn import functional as F


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):  # (R, L, D)
        rows, length, width = x.shape
        qkv = self.qkv(self.norms[0](x)).view(rows, length, 3, self.heads, -1)
        attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(F.silu(self.up(self.norms[1](x))))


class Body(nn.Module):
    def __init__(self, vocab, width, layers, heads=4, longest=512):
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.places = nn.Parameter(0.1 * torch.randn(longest, width))
        self.layers = nn.ModuleList([Layer(width, heads) for _ in range(layers)])
        self.norm = nn.RMSNorm(width)

    def forward(self, ids):  # (R, L) → (R, L, D)
        x = self.tokens(ids) + self.places[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Head(nn.Module):
    def __init__(self, vocab, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab, width) * 0.1)

    def forward(self, hidden, compute):  # in here the weight is whole, and no argument is cast
        return compute(hidden.flatten(0, 1), self.weight)


class Model(nn.Module):
    def __init__(self, vocab=24, width=64):
        super().__init__()
        self.body, self.head = Body(vocab, width, layers=2), Head(vocab, width)

    def forward(self, ids, compute):
        return self.head(self.body(ids), compute)

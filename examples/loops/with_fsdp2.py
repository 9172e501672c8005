"""FSDP2: `fully_shard`, a unit for each layer, policy and reference alike.

torchrun --nproc_per_node 2 examples/loops/with_fsdp2.py
"""

import copy

import torch
from shared import BATCH, collate, join, pairs, report, tiny_model
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from prefkit import TDPO, preference_loss, stream_of


def sharded(model):
    for layer in model.transformer.h:  # model.model.layers in Llama and most others
        fully_shard(layer)
    return fully_shard(model)


def main():
    rank, world = join()
    model = tiny_model()
    reference = sharded(copy.deepcopy(model).requires_grad_(False))
    model = sharded(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    objective = TDPO(beta=0.1, alpha=0.5)

    rows = pairs()
    sampler = DistributedSampler(rows, world, rank, shuffle=False)
    for padded in DataLoader(rows, BATCH // world, sampler=sampler, collate_fn=collate):
        batch = stream_of(padded, order="interleaved")
        out = preference_loss(model, batch, objective, reference)  # the root
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    report(out.loss, model.parameters())


if __name__ == "__main__":
    main()

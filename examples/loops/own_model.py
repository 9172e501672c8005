"""A model of one's own, as torchtitan has them: no forward of transformers, sharded by FSDP2.

torchrun --nproc_per_node 2 examples/loops/own_model.py
"""

import copy

import torch
from decoder import Model
from shared import BATCH, collate, join, pairs, report
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from prefkit import DPO, fused_preference_loss, stream_of
from prefkit_kernels import token_stats


def main():
    rank, world = join()
    torch.manual_seed(0)
    model = Model()
    reference = copy.deepcopy(model).requires_grad_(False)
    for unit in (*model.body.layers, model.head, model):
        fully_shard(unit)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    rows = pairs()
    sampler = DistributedSampler(rows, world, rank, shuffle=False)
    for padded in DataLoader(rows, BATCH // world, sampler=sampler, collate_fn=collate):
        batch = stream_of(padded, order="interleaved")
        out = model(batch["input_ids"], loss_of(batch, reference))
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    report(out.loss, model.parameters())


def loss_of(batch, reference):
    """What the head computes with its operands in place of logits."""
    ids, places, targets = (batch[name] for name in ("input_ids", "positions", "targets"))
    ref_logp = reference(ids, lambda hidden, weight: token_stats(hidden[places], weight, targets))
    stream = (targets, batch["segments"], DPO(beta=0.1))
    return lambda hidden, weight: fused_preference_loss(
        hidden[places], weight, *stream, ref_logp=ref_logp.logp
    )


if __name__ == "__main__":
    main()

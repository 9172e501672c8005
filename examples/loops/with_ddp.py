"""DistributedDataParallel, nothing else.

torchrun --nproc_per_node 2 examples/loops/with_ddp.py
"""

import copy

import torch
from shared import BATCH, collate, join, pairs, report, tiny_model
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from prefkit import TDPO, preference_loss, stream_of


def main():
    rank, world = join()
    policy = tiny_model()
    reference = copy.deepcopy(policy).requires_grad_(False)  # whole in every process
    model = DistributedDataParallel(policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    objective = TDPO(beta=0.1, alpha=0.5)

    rows = pairs()
    sampler = DistributedSampler(rows, world, rank, shuffle=False)
    for padded in DataLoader(rows, BATCH // world, sampler=sampler, collate_fn=collate):
        batch = stream_of(padded, order="interleaved")
        out = preference_loss(model, batch, objective, reference)  # the wrapped model
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    report(out.loss, policy.parameters())


if __name__ == "__main__":
    main()

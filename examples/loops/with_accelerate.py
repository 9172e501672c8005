"""accelerate: DDP, or FSDP2 and DeepSpeed as `accelerate launch` and its settings say.

torchrun --nproc_per_node 2 examples/loops/with_accelerate.py
"""

import copy

import torch
from accelerate import Accelerator
from shared import BATCH, collate, pairs, report, tiny_model
from torch.utils.data import DataLoader

from prefkit import DPO, preference_loss, stream_of


def main():
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    policy = tiny_model()
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    loader = DataLoader(pairs(), BATCH // accelerator.num_processes, collate_fn=collate)
    model, optimizer, loader = accelerator.prepare(policy, optimizer, loader)
    # Not a second model to train: to its device, and into the same mixed precision.
    reference = accelerator.prepare_model(reference, evaluation_mode=True)

    for padded in loader:
        batch = stream_of(padded, order="interleaved")
        out = preference_loss(model, batch, DPO(beta=0.1), reference)  # the prepared model
        accelerator.backward(out.loss)
        optimizer.step()
        optimizer.zero_grad()
    report(out.loss, model.parameters())


if __name__ == "__main__":
    main()

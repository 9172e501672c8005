"""A head split by vocabulary over tensor-parallel processes, as Megatron and NeMo have it.

torchrun --nproc_per_node 2 examples/loops/split_head.py
"""

import copy

import torch
import torch.distributed as dist
from decoder import Body
from shared import BATCH, collate, join, pairs, report
from torch import nn
from torch.utils.data import DataLoader

from prefkit import TDPO, fused_preference_loss, stream_of
from prefkit_kernels import VocabShard

VOCAB, WIDTH = 23, 64  # 23: the last process has a row less


def main():
    join()
    torch.manual_seed(0)
    body = Body(VOCAB, WIDTH, layers=2)  # tensor-parallel itself in Megatron; hidden states alike
    whole = torch.randn(VOCAB, WIDTH) * 0.1
    shard = VocabShard(dist.group.WORLD, VOCAB)  # Megatron: get_tensor_model_parallel_group()
    weight = nn.Parameter(whole[shard.start : shard.stop].clone())  # ColumnParallelLinear.weight
    ref_body, ref_weight = copy.deepcopy((body, weight.detach()))
    optimizer = torch.optim.AdamW([*body.parameters(), weight], lr=1e-3)

    for padded in DataLoader(pairs(), BATCH, collate_fn=collate):  # the same rows in every process
        batch = stream_of(padded, order="interleaved")
        hidden = body(batch["input_ids"]).flatten(0, 1)[batch["positions"]]
        with torch.no_grad():
            ref_hidden = ref_body(batch["input_ids"]).flatten(0, 1)[batch["positions"]]
        stream = (hidden, weight, batch["targets"], batch["segments"], TDPO(beta=0.1, alpha=0.5))
        reference = {"ref_hidden": ref_hidden, "ref_weight": ref_weight}
        out = fused_preference_loss(*stream, **reference, vocab_shard=shard)
        out.loss.backward()  # hidden gets the gradient of the whole vocabulary: no copy_to_region
        optimizer.step()
        optimizer.zero_grad()
    slices = [torch.zeros(shard.widest, WIDTH) for _ in range(dist.get_world_size())]
    rows = torch.zeros(shard.widest, WIDTH)
    rows[: len(weight)] = weight.detach()
    dist.all_gather(slices, rows)
    report(out.loss, [*body.parameters(), *slices])


if __name__ == "__main__":
    main()

"""Training: transformers' Trainer on pairs and on solutions.

- `trainer`, `supervised`: the two trainers; what differs between them is their rows and their loss;
- `base`, `evaluating`: what transformers calls of a trainer, to train and to evaluate, each call
  handed to one of the parts below;
- `predictions`: what an evaluation tells of each pair;
- `fields`, `config`, `run_config`: the options;
- `checks`: what refuses a run, in one order (`checks.entry`);
- `models`: the policy, its adapter, the frozen reference;
- `rows`: datasets prepared and laid out into batches, the reference's cache, the stream's position;
- `step`: the loss of one batch;
- `meter`, `metrics`: log lines, and the end of a run whose loss is lost;
- `checkpointing`: checkpoints that are complete or refused, and resumed runs;
- `sharding`: what accelerate leaves open of FSDP2 and ZeRO, and processes that share rows.
"""

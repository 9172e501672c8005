"""How long does one optimiser step of a whole trainer take, and how much memory, beside TRL's?

    python -m benchmarks.whole_step [--shape steps answers] [--model FOLDER] [--rounds 5]

Real trainers on the same rows: `PreferenceTrainer` in its layouts and TRL's `DPOTrainer`, fp32,
AdamW, one pair a step, the reference a frozen copy. Each lives in a process of its own and takes
one step when it is its turn, so that a drift of the machine's speed meets all alike. Time: from the
start of the step's forward to the end of the optimiser's step, first step left out. Memory: the
process's peak resident size less its size before the model was loaded.

Without --model (or PREFKIT_SMOLLM2) the model is SmolLM2-135M's architecture with random weights,
which takes the same time.

The same on a GPU: a shape that says so is trained in bf16 mixed precision, its rows are words of
one token each (so that the two sides have one length, and TRL's attention needs no mask of
padding), and memory is the peak of torch's allocator. `benchmarks.gpu.trainers` runs those.
"""

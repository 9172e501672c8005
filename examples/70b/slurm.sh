#!/bin/bash
# Full fine-tuning on 8 machines of 8 GPUs:
#   sbatch examples/70b/slurm.sh examples/70b/llama-3-70b/step-dpo-full.yaml
# LoRA on one machine:
#   sbatch --nodes 1 examples/70b/slurm.sh examples/70b/llama-3-70b/step-dpo-lora.yaml
# Not run on a cluster yet. Weights and data must lie where every machine reads them (HF_HOME).
#SBATCH --job-name=prefkit-70b
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=48:00:00
#SBATCH --signal=TERM@120
set -euo pipefail
config=${1:?a recipe, such as examples/70b/llama-3-70b/step-dpo-full.yaml}
shift

export PROCESSES=$((SLURM_NNODES * 8))
launcher=examples/70b/accelerate/fsdp2-${PROCESSES}gpu.yaml
[ -f "$launcher" ] || { echo "no $launcher for $PROCESSES processes" >&2; exit 2; }
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD launcher config
export OMP_NUM_THREADS=8 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

# One launcher a machine; each starts its 8 processes. An interrupted run goes on where it was.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file "$launcher" \
  --num_machines "$SLURM_NNODES" --num_processes "$PROCESSES" --machine_rank "$SLURM_NODEID" \
  --main_process_ip "$HEAD" --main_process_port 29500 --rdzv_backend c10d \
  -m prefkit train "$config" --resume_from_checkpoint auto "$@"' prefkit "$@"

#!/usr/bin/env bash
# Step-DPO and cDPO on GSM8K with a real small model: pairs, training, test. See README.md.
#
#   MODEL=<folder of SmolLM2-135M-Instruct> GSM8K=<folder with train.jsonl, test.jsonl> ./run.sh
#
# Sizes are for a CPU (half an hour); SIZE=full is for a GPU. SERVER=<URL> samples by a server.
set -euo pipefail
cd "$(dirname "$0")"

MODEL=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct}
GSM8K=${GSM8K:?the folder of GSM8K with train.jsonl and test.jsonl}
OUT=${OUT:-runs/smollm2_gsm8k}
SIZE=${SIZE:-small}
PREFKIT=${PREFKIT:-prefkit}

if [ "$SIZE" = full ]; then
  TRAIN=7473 TEST=1000 BATCH=256 CDPO_SAMPLES=64 STEPS_OF_TRAINING=400
else
  TRAIN=${TRAIN:-40} TEST=${TEST:-40} BATCH=32 CDPO_SAMPLES=${CDPO_SAMPLES:-8} STEPS_OF_TRAINING=${STEPS:-8}
fi

# The question as it is asked, the same for sampling, training and testing.
ASKED=(--prompt_template "$(cat prompt.txt)" --joiner '\n')
SAMPLED=("${ASKED[@]}" --stop '\nQuestion:' --max_tokens 160 --answer hash)
[ -n "${SERVER:-}" ] && SAMPLED+=(--server "$SERVER")

evaluate() { # NAME MODEL
  $PREFKIT evaluate "$GSM8K/test.jsonl" --model "$2" --out "$OUT/test-$1" --max_questions "$TEST" \
    --batch_size "$BATCH" "${ASKED[@]}" --stop '\nQuestion:' --max_tokens 160 --answer hash
}
build() { # METHOD FLAG …
  local method=$1
  shift
  $PREFKIT build "$method" "$GSM8K/train.jsonl" --model "$MODEL" --out "$OUT/$method-pairs" \
    --max_questions "$TRAIN" --batch_size "$BATCH" "${SAMPLED[@]}" "$@"
}
train() { # METHOD FLAG …
  local method=$1
  shift
  $PREFKIT train --method "$method" --model "$MODEL" --train_data "$OUT/$method-pairs/pairs.jsonl" \
    --output_dir "$OUT/$method" --resume_from_checkpoint auto --max_steps "$STEPS_OF_TRAINING" \
    --per_device_train_batch_size 4 --learning_rate 2e-6 --lr_scheduler_type cosine \
    --warmup_steps 0.1 --logging_steps 2 --save_steps 50 "${ASKED[@]}" "$@"
}

evaluate start "$MODEL"
build step-dpo --samples 4 --temperature 0.8 --rectifications 8
train step-dpo
evaluate step-dpo "$OUT/step-dpo"
build cdpo --samples "$CDPO_SAMPLES" --temperature 0.6 0.8 1.0
train cdpo
evaluate cdpo "$OUT/cdpo"

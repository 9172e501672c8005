#!/usr/bin/env bash
# Step-DPO and cDPO on GSM8K with a real small model: pairs, training, test. See README.md.
#
#   MODEL=<folder of SmolLM2-135M-Instruct> GSM8K=<folder with train.jsonl, test.jsonl> ./run.sh
#
# Sizes are for a CPU; SIZE=full is for a GPU. SERVER=<URL> samples by a server.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)

MODEL=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct}
GSM8K=${GSM8K:?the folder of GSM8K with train.jsonl and test.jsonl}
OUT=${OUT:-runs/smollm2_gsm8k}
SIZE=${SIZE:-small}
PREFKIT=${PREFKIT:-prefkit}
PYTHON=${PYTHON:-python}

mkdir -p "$OUT"
if [ "$SIZE" = full ]; then
  BATCH=256 CDPO_SAMPLES=64 STEPS=${STEPS:-400} LOCALISER=${LOCALISER:-auto} # word problems: rollouts
  cp "$GSM8K/train.jsonl" "$OUT/questions.jsonl"
  cp "$GSM8K/test.jsonl" "$OUT/test.jsonl"
else # the questions of fewest calculations: this model solves hardly any others
  # Rollouts would sample five times as much, from a model that fails nearly always.
  BATCH=32 CDPO_SAMPLES=${CDPO_SAMPLES:-16} STEPS=${STEPS:-8} LOCALISER=${LOCALISER:-program}
  $PYTHON "$HERE/pick_questions.py" "$GSM8K/train.jsonl" "${TRAIN:-40}" > "$OUT/questions.jsonl"
  $PYTHON "$HERE/pick_questions.py" "$GSM8K/test.jsonl" "${TEST:-60}" > "$OUT/test.jsonl"
fi

# The question as it is asked, the same for sampling and testing; train.yaml tells it to training.
ASKED=(--prompt_template "$(cat "$HERE/prompt.txt")" --joiner '\n' --stop '\nQuestion:' --max_tokens 120
  --answer hash --batch_size "$BATCH")

evaluate() { # NAME MODEL
  $PREFKIT evaluate "$OUT/test.jsonl" --model "$2" --out "$OUT/test-$1" "${ASKED[@]}"
}
build() { # METHOD FLAG …
  local method=$1
  shift
  $PREFKIT build "$method" "$OUT/questions.jsonl" --model "$MODEL" --out "$OUT/$method-pairs" \
    "${ASKED[@]}" ${SERVER:+--server "$SERVER"} "$@"
}
train() { # METHOD FLAG …
  local method=$1
  shift
  $PREFKIT train "$OUT/$method-pairs/train.yaml" --output_dir "$OUT/$method" \
    --resume_from_checkpoint auto --max_steps "$STEPS" --per_device_train_batch_size 4 \
    --learning_rate 2e-6 --lr_scheduler_type cosine --warmup_steps 0.1 --logging_steps 2 \
    --save_steps 50 "$@"
}

evaluate start "$MODEL"
build step-dpo --samples 4 --temperature 0.8 --rectifications 12 --localiser "$LOCALISER"
train step-dpo
evaluate step-dpo "$OUT/step-dpo"
build cdpo --samples "$CDPO_SAMPLES" --temperature 0.6 0.8 1.0
train cdpo
evaluate cdpo "$OUT/cdpo"

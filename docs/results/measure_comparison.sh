#!/usr/bin/env bash
# Compare distillation, soups, query-bank normalisation and temperatures on real recordings in Clotho's layout, in about
# two hours on two cores for 240 clips to train on:
#
#     bash docs/results/measure_comparison.sh FOLDER WORK
#
# Writes comparison.json. The store and the runs are kept in the folder WORK, and a second call resumes an interrupted
# one.
set -euo pipefail
source=$(cd "$1" && pwd)
mkdir -p "$2"
work=$(cd "$2" && pwd)
results=$(cd "$(dirname "$0")" && pwd)
cd "$results/../.."
[[ -e $work/store ]] || python data/prepare.py clotho --source "$source" --store "$work/store"
for space in first_stage controls students temperatures students_of_pairs; do
    python sweeps/grid.py --space "docs/results/comparison_spaces.py:$space" --corpus clotho --store "$work/store" \
        --runs "$work/runs" --precision float32 --name "$space"
done
python ensemble/select.py --metric map10 --runs "$work/runs" --store "$work/store" --sweep controls --soup --folds 0 \
    --out "$work/runs/ensembles/soups-controls"
python docs/results/compare_trainings.py "$work/runs"

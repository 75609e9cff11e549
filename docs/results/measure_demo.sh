#!/usr/bin/env bash
# Measure the demo on five synthetic corpora (a quarter of an hour on two cores): bash docs/results/measure_demo.sh
#
# Writes demo/SEED.json, the ensemble.json of each corpus, and demo/SEED.csv, the report on its trials on the validation split.
set -euo pipefail
results=$(cd "$(dirname "$0")" && pwd)
cd "$results/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$results/demo"
for seed in 0 1 2 3 4; do
    python data/prepare.py synthetic --seed $seed --store "$work/store$seed"
    python sweeps/grid.py --store "$work/store$seed" --runs "$work/runs$seed" --precision float32 --name demo
    python ensemble/select.py --metric map10 --runs "$work/runs$seed"
    python ensemble/report.py --runs "$work/runs$seed" --no-test
    cp "$work/runs$seed/ensembles/demo/ensemble.json" "$results/demo/$seed.json"
    cp "$work/runs$seed/reports/demo/report.csv" "$results/demo/$seed.csv"
done

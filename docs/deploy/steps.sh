#!/bin/sh
# The steps of the Dockerfile without a container engine: the wheel is built from the files that it copies, installed
# into an empty environment, and serves a picture to whoever has the key, as its health check sees it.
# sh docs/deploy/steps.sh [python3.12]; any user may run it, and TMPDIR says where
set -eu
source=$(cd "$(dirname "$0")/../.." && pwd) && place=$(mktemp -d) && server=
trap 'test -z "$server" || kill "$server"; rm -rf "$place"' EXIT
mkdir "$place/source" && cd "$source"
cp -r $(sed -n 's/^COPY \(.*\) \.\/$/\1/p' docs/deploy/Dockerfile) src "$place/source"
cd "$place/source"
"${1:-python3}" -m venv "$place/env" && PATH="$place/env/bin:$PATH"
pip wheel --quiet --no-deps --wheel-dir "$place/wheels" .
pip install --quiet --no-cache-dir "$(echo "$place"/wheels/*.whl)[serve,postgres]"
cd "$place" && mkdir data && export OMP_NUM_THREADS=1
if undertow serve --check --host 0.0.0.0 --port 0 --data data; then echo "served without a key"; exit 1; fi
key=$(undertow keys add me --data data | grep -o 'ut_[A-Za-z0-9_-]*' | head -n 1)
undertow serve --host 0.0.0.0 --port 8189 --data data > log 2>&1 & server=$!
health=$(sed -n 's/^HEALTHCHECK CMD python -c "\(.*\)"$/\1/p' "$source/docs/deploy/Dockerfile" | sed 's/8188/8189/')
for _ in $(seq 120); do if python -c "$health" 2> /dev/null; then break; fi; sleep 1; done
python -c "$health" || { cat log; exit 1; }
curl -sf http://127.0.0.1:8189/v1/jobs -H "Authorization: Bearer $key" -H 'Prefer: wait=60' \
  --json '{"prompt": "red apple on white background", "steps": 4}' | grep -q '"state": *"succeeded"'
echo "built, installed, refused without a key, healthy, and drew"

#!/usr/bin/env bash
# Build the package on a machine with a GPU, test it, check it with compute-sanitizer and measure it: 8 minutes at most.
# Logs and the record go to $OUT, by default benchmarks/results. Nothing is downloaded: CuPy and what pyproject.toml asks
# for must be installed.
set -euo pipefail

out=${OUT:-$(dirname "$0")/results}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export PYTHONPATH="$folder/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

summary=()
failed=0

# part NAME SECONDS COMMAND...: run a command for so many seconds at most, write what it prints to NAME.log, and add a
# line about it to the summary.
part() {
    local name=$1 seconds=$2 begin=$SECONDS status=0 how=passed
    shift 2
    echo "$name ..."
    # A shell in the background ignores SIGINT, and its commands would inherit that: env restores the default.
    timeout --signal=INT --kill-after=10 "$seconds" env --default-signal=INT "$@" >"$out/$name.log" 2>&1 </dev/null ||
        status=$?
    if ((status)); then
        failed=1
        how="FAILED ($status)"
        ((status == 124 || status == 137)) && how="STOPPED after $seconds s"
        tail -n 30 "$out/$name.log"
    fi
    summary+=("$(printf '%-10s %4d s  %s' "$name" $((SECONDS - begin)) "$how")")
    return "$status"
}

finish() {
    printf '\n%s\n' "everything is in $out"
    printf '%s\n' "${summary[@]}"
    exit "$failed"
}

# CMake builds for the GPUs that it finds on this machine.
export FUSEDSTEP_CUDA=ON
build='python3 -m pip install --disable-pip-version-check --no-build-isolation --no-deps --target "$0/site" \
    --config-settings=build-dir="$0/build" . && python3 -m fusedstep info'
part build 180 bash -c "$build" "$folder" || finish

workers=()
if python3 -c "import xdist" 2>/dev/null; then workers=(-n 6 --benchmark-disable); fi
part tests 90 python3 -m pytest -q --tb=short -p no:cacheprovider "${workers[@]}" -m gpu tests/gpu || true

cat >"$folder/short.py" <<'PYTHON'
import cupy
import numpy as np
from ml_dtypes import bfloat16

import fusedstep
from fusedstep import reference
from fusedstep.tools import verify

cupy.cuda.set_allocator(None)  # each array has memory of its own, so that reads and writes beyond it are noticed
verify.Guarded.margin = 0
CASES = [
    ("Adam", {"clip_global_norm": 20.0, "ema": 0.9, "zero_grad": True}, np.float32, np.float32),
    ("AdamW", {"clip_norm": 3.0}, np.float64, np.float64),
    ("SGD", {"l1": 0.1, "clip_value": 0.5}, np.float32, bfloat16),
    ("NAG", {"master_weights": "split", "clip_global_norm": 20.0}, bfloat16, bfloat16),
    ("RMSprop", {"centered": True, "state_dtype": "same", "rounding": "stochastic"}, bfloat16, bfloat16),
    ("Nadam", {"master_weights": True, "ema": 0.9}, np.float16, np.float32),
    ("Lion", {"skip_nonfinite": True}, np.float32, np.float32),
]
for sizes in ((1, 3, 0, 33, 1023, 1025, 4099), (7,) * 100):
    for name, options, dtype, grad_dtype in CASES:
        expected = verify.outcome(getattr(reference, name)(**options), dtype, sizes, grad_dtype)
        found = verify.outcome(getattr(fusedstep, name)(**options), dtype, sizes, grad_dtype, cupy.asarray)
        different = verify.difference(found, expected)
        print(f"{name}, {len(sizes)} tensors: {different} elements differ", flush=True)
        assert different == 0
PYTHON
for tool in "memcheck --track-stream-ordered-races all" racecheck initcheck; do
    # shellcheck disable=SC2086
    part "${tool%% *}" 35 compute-sanitizer --tool $tool --report-api-errors no --error-exitcode 1 \
        python3 "$folder/short.py" || true
done

left=$((465 - SECONDS))
minutes=$(awk "BEGIN { print ($left / 2 - 20) / 60 }")
part bench $((left / 2)) python3 -m fusedstep bench --device cuda:0 --minutes "$minutes" --json "$out/gpu.json" || true
part cases $((465 - SECONDS)) python3 -m pytest -q -p no:cacheprovider -m gpu --benchmark-json="$out/cases.json" \
    benchmarks/bench_gpu.py || true
cat "$out/bench.log" "$out/cases.log"
finish

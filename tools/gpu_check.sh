#!/usr/bin/env bash
# The whole check of the cuda driver on a machine with an NVIDIA GPU, from a bare checkout:
#
#     tools/gpu_check.sh [--python PYTHON] [--wheels DIR] [--commit NAME] [--only STAGE,...] REPORT.md
#
# Builds, runs the suites on cuda, compute-sanitizer over every kernel, and the benchmarks, and writes a
# report. What PYTHON lacks is installed into build/gpu, from PyPI or from the wheels in DIR; nothing
# outside the checkout is changed. NAME is the commit to report, for a copy whose .git lags behind it.
# Stages: build suites stalled memcheck racecheck synccheck initcheck bench.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=python3 WHEELS="" ONLY="" REPORT=""
while [ $# -gt 0 ]; do
    case "$1" in
        --python) PYTHON="$2"; shift 2 ;;
        --wheels) WHEELS="$(realpath "$2")"; shift 2 ;;
        --commit) export GPU_CHECK_COMMIT="$2"; shift 2 ;;
        --only) ONLY=",$2,"; shift 2 ;;
        -*) sed -n '2,9p' "$0" >&2; exit 2 ;;
        *) REPORT="$1"; shift ;;
    esac
done
if [ -z "$REPORT" ]; then
    sed -n '2,9p' "$0" >&2
    exit 2
fi
WORK="$PWD/build/gpu"
mkdir -p "$WORK/logs" "$(dirname "$REPORT")"
rm -rf "$WORK/logs/"* "$WORK"/cache*
export PYTHONPATH="$PWD:$WORK/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export XDG_CACHE_HOME="$WORK/cache" OXIBONSAI_REQUIRE_DEVICES=cpu,cuda
# What was tuned on this machine does not change what is measured.
export OXIBONSAI_TUNING=0
# Plugins of the machine's own may warn, and a warning is an error here.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
CORES="$(nproc)"
failed=()
: >"$WORK/stages.txt"

wanted() { [ -z "$ONLY" ] || [[ "$ONLY" == *",$1,"* ]]; }

stage() { # name, seconds allowed, command...
    local name="$1" limit="$2" begin=$SECONDS status=0
    shift 2
    wanted "$name" || return 0
    timeout --kill-after=10 "$limit" "$@" >"$WORK/logs/$name.log" 2>&1 || status=$?
    printf '%s\t%d\t%d\n' "$name" "$status" $((SECONDS - begin)) >>"$WORK/stages.txt"
    echo "$name: status $status after $((SECONDS - begin)) s"
    [ "$status" -eq 0 ] || tail -n 15 "$WORK/logs/$name.log"
    return "$status"
}

missing_packages() {
    "$PYTHON" - <<'PYTHON_END'
import importlib.util

needed = {"setuptools": "setuptools>=77", "Cython": "Cython>=3.1", "numpy": "numpy>=1.24",
          "pytest": "pytest>=8", "hypothesis": "hypothesis>=6.100", "tokenizers": "tokenizers>=0.19",
          "jinja2": "jinja2>=3.1.6", "rich": "rich>=13", "pyte": "pyte>=0.8.1", "xdist": "pytest-xdist"}
print("\n".join(v for k, v in needed.items() if importlib.util.find_spec(k) is None))
PYTHON_END
}

build() {
    set -e
    local missing source=()
    mapfile -t missing < <(missing_packages)
    if [ -n "$WHEELS" ]; then source=(--no-index --find-links "$WHEELS"); fi
    if [ -n "${missing[*]}" ]; then
        "$PYTHON" -m pip install --quiet --target "$WORK/site" "${source[@]}" "${missing[@]}"
    fi
    "$PYTHON" setup.py --quiet build_ext --inplace
    if ! "$PYTHON" -c 'from oxibonsai.metal import Device; print(Device("cuda").info)'; then
        "$PYTHON" -m pip install --quiet --target "$WORK/site" "${source[@]}" nvidia-cuda-nvrtc
        "$PYTHON" -c 'from oxibonsai.metal import Device; print(Device("cuda").info)'
    fi
}

suites() {
    "$PYTHON" -m pytest tests -k cuda -m "not peer and not simulated" -p no:cacheprovider -q \
        -p xdist.plugin -n "$((CORES < 8 ? CORES : 8))" --dist load --junitxml="$WORK/logs/suites.xml"
}

# Under one of compute-sanitizer's tools: every operation in every format, which is every kernel, and whole
# small models.
sanitizer() {
    local tool="$1" files
    files=(tests/shim/ops/test_{ops,ops_batched,options}.py tests/model/test_model_reference.py)
    # A cache of its own, so that it holds the kernels whose pipelines this run made, and no others.
    export XDG_CACHE_HOME="$WORK/cache-$tool"
    compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes application-only \
        --print-limit 20 "$PYTHON" -m pytest "${files[@]}" -k "cuda" -q -p no:cacheprovider \
        -m "not slow and not peer and not threads and not large" --junitxml="$WORK/logs/$tool.xml"
}

# Every kernel lets the next one start at once and lingers ahead of its stores, so that one that does not
# wait for its inputs reads what is not there yet (docs/cuda.md).
stalled() {
    OXIBONSAI_CUDA_DEFINES=MSL_STALL "$PYTHON" -m pytest tests/shim/ops tests/model/test_model_reference.py \
        -k cuda -m "not slow and not peer and not simulated and not large" -p no:cacheprovider -q \
        -p xdist.plugin -n 4 --junitxml="$WORK/logs/stalled.xml"
}

bench() {
    set -e
    for format in Q1_0 TQ2_0_g128; do
        "$PYTHON" tools/synthetic_model.py --shape bonsai-8b --format "$format" \
            --out "$WORK/bonsai-8b-$format.gguf" >&2
    done
    "$PYTHON" benchmarks/device_time.py --device cuda --model oxibonsai/data/alice-q1_0.gguf \
        --model "$WORK/bonsai-8b-Q1_0.gguf" --model "$WORK/bonsai-8b-TQ2_0_g128.gguf"
    rm -f "$WORK"/bonsai-8b-*.gguf
}

export -f missing_packages build suites sanitizer stalled bench
export PYTHON WHEELS WORK CORES
if stage build 300 bash -c build || ! wanted build; then
    # Timings have the machine to themselves; the others share it.
    stage bench 200 bash -c bench || failed+=(bench)
    pids=()
    for tool in memcheck racecheck synccheck initcheck; do
        stage "$tool" 330 bash -c "sanitizer $tool" &
        pids+=("$!:$tool")
    done
    stage suites 270 bash -c suites || failed+=(suites)
    stage stalled 200 bash -c stalled || failed+=(stalled)
    for pair in "${pids[@]}"; do wait "${pair%%:*}" || failed+=("${pair##*:}"); done
else
    failed+=(build)
fi
"$PYTHON" tools/gpu_report.py "$WORK" >"$REPORT" || failed+=(report)
echo "report: $REPORT, $SECONDS s in all"
if [ "${#failed[@]}" -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi

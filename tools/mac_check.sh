#!/usr/bin/env bash
# The whole check of the metal driver on a Mac, from a bare checkout (macOS 12, Python 3.10 or
# newer, xcode-select --install):
#
#     tools/mac_check.sh [--python PYTHON] [--only STAGE,...] [--rehearse] REPORT.md
#
# Builds, compiles the shaders with Xcode's compiler where there is one, times every kernel and its
# variants, prompts and decoding, runs the suites on metal and on the cpu, and again under Metal's
# validation layers, and writes one report to send back, anew with each stage. How long it takes on a
# Mac is not known; half an hour is a guess. It builds in place: the checkout's extension modules are
# replaced. Whatever else it writes there is ignored by git, most of it in build/mac. Outside the
# checkout it writes the report, temporary files, and what pip, rustc and Metal keep in their caches.
# The report leaves out names, private paths and hosts, addresses and serial numbers as far as they
# are recognized: read it before you send it.
# --rehearse runs every stage on the cpu device, small, wherever there is bash.
# Stages: build metallib devices demo kernels demo-model synthetic chunk-32 chunk-128 chunk-512
# precompiled suites cpu validated. Those named in --only run with what an earlier run has built;
# the chunks need synthetic, and precompiled needs metallib.
#
# For bash 3.2 and the tools of macOS: no arrays by name, no mapfile, no timeout.
set -uo pipefail
START="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

usage() {
    sed -n '2,18p' "$0" >&2
    exit 2
}

PYTHON=python3 ONLY="" REPORT="" REHEARSE=""
while [ $# -gt 0 ]; do
    case "$1" in
        --python) [ $# -ge 2 ] || usage; PYTHON="$2"; shift 2 ;;
        --only) [ $# -ge 2 ] || usage; ONLY=",$2,"; shift 2 ;;
        --rehearse) REHEARSE=yes; shift ;;
        -*) usage ;;
        *) [ -z "$REPORT" ] || usage; REPORT="$1"; shift ;;
    esac
done
[ -n "$REPORT" ] || usage
# From the folder where the command was given.
case "$REPORT" in /*) ;; *) REPORT="$START/$REPORT" ;; esac
case "$PYTHON" in /*) ;; */*) PYTHON="$START/$PYTHON" ;; esac
if [ -z "$REHEARSE" ] && [ "$(uname -s)" != Darwin ]; then
    echo "this is not a Mac: tools/mac_check.sh --rehearse runs the stages on the cpu device" >&2
    exit 2
fi
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "Python 3.10 or newer is needed, $PYTHON is not: --python /path/to/python3" >&2
    exit 2
}

# What the person has set for other runs does not change this one, nor what was tuned on this Mac.
for name in ${!OXIBONSAI_*} ${!PYTEST_*}; do unset "$name"; done
export OXIBONSAI_TUNING=0

WORK="$PWD/build/mac"
VENV="$WORK/venv"
PY="$VENV/bin/python"
rm -rf "$WORK/logs" "$WORK/stages.txt" "$WORK/results"
mkdir -p "$WORK/logs" "$WORK/results" "$(dirname "$REPORT")" || exit 1
: >"$WORK/stages.txt"
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export PYTHON PY VENV WORK REHEARSE
# Plugins of the machine's own may warn, and a warning is an error here.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
DEVICE=metal KEYWORD="metal:0" SHAPE=bonsai-1.7b JOBS=4 SMALL="" TESTS="tests"
if [ -n "$REHEARSE" ]; then
    # What the given Python has is seen in the new environment too, so that nothing is downloaded.
    PYTHONPATH="$PYTHONPATH:$("$PYTHON" -c \
        'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep=":")')"
    DEVICE=cpu KEYWORD="cpu:0" SHAPE=tiny JOBS=2 SMALL=--small
    TESTS="tests/shim/ops/test_options.py"
fi
export DEVICE KEYWORD SHAPE JOBS SMALL TESTS

# A Mac that falls asleep, or whose display does, times something else.
if command -v caffeinate >/dev/null; then
    caffeinate -dims -w $$ >/dev/null 2>&1 &
fi

wanted() { [ -z "$ONLY" ] || case "$ONLY" in *",$1,"*) true ;; *) false ;; esac; }

# The report so far. The disk has it before what comes next, which may hang the Mac.
report() {
    "$PYTHON" tools/mac_report.py "$WORK" >"$WORK/report.part" &&
        cat "$WORK/report.part" >"$REPORT" && sync
}

record() { # stage, status, seconds: the last line of a stage counts
    printf '%s\t%s\t%d\n' "$1" "$2" "$3" >>"$WORK/stages.txt"
}

running="" now="" since=0
interrupted() {
    trap '' INT TERM HUP
    [ -z "$running" ] || kill -KILL -- "-$running" 2>/dev/null
    [ -z "$now" ] || record "$now" begun $((SECONDS - since))
    report && echo "interrupted; the report so far: $REPORT"
    exit 130
}
trap interrupted INT TERM HUP

# Run a command in a process group of its own, and end it after so many seconds: with status 124, as
# timeout would. What even SIGKILL does not end, because it waits in the kernel, is left behind.
limited() { # seconds, log, command...
    local end=$((SECONDS + $1)) log="$2" pid status=0 tries
    shift 2
    set -m
    "$@" >"$log" 2>&1 </dev/null &
    pid=$! running=$!
    set +m
    while kill -0 "$pid" 2>/dev/null; do
        if [ "$SECONDS" -ge "$end" ]; then
            printf '\n(ended after its limit)\n' >>"$log"
            kill -TERM -- "-$pid" 2>/dev/null
            for tries in 1 2 3 4 5 6; do
                kill -0 -- "-$pid" 2>/dev/null || return 124
                [ "$tries" -eq 3 ] && kill -KILL -- "-$pid" 2>/dev/null
                sleep 1
            done
            return 124
        fi
        sleep 0.2
    done
    wait "$pid" || status=$?
    running=""
    return "$status"
}

stage() { # name, seconds allowed, command...
    local name="$1" limit="${MAC_CHECK_LIMIT:-$2}" status=0
    shift 2
    wanted "$name" || return 0
    now="$name" since=$SECONDS
    record "$name" begun 0
    report 2>"$WORK/logs/report.log" || true
    echo "$name: at most $limit s"
    since=$SECONDS
    limited "$limit" "$WORK/logs/$name.log" "$@" 2>/dev/null || status=$?
    now=""
    record "$name" "$status" $((SECONDS - since))
    echo "$name: status $status after $((SECONDS - since)) s"
    [ "$status" -eq 0 ] || tail -n 15 "$WORK/logs/$name.log"
    return "$status"
}

skipped() { # name, why
    wanted "$1" || return 0
    record "$1" skipped 0
    echo "$2" | tee "$WORK/logs/$1.log"
}

build() {
    set -e
    "$PYTHON" -m venv --clear "$VENV"
    "$PY" -m pip install --quiet 'setuptools>=77' 'Cython>=3.1'
    "$PY" setup.py --quiet build_ext --inplace
    "$PY" -m pip install --quiet --no-build-isolation --editable '.[test]'
    "$PY" -c 'from oxibonsai import metal; print(metal.devices())'
}

# shellcheck disable=SC2086 # lists of words
suite() { # name of the report, device, keyword
    export OXIBONSAI_REQUIRE_DEVICES="$2"
    "$PY" -m pytest $TESTS -k "$3" -m "not slow and not peer and not simulated" \
        -p no:cacheprovider -p xdist.plugin -n "$JOBS" --dist load -q \
        --junitxml="$WORK/logs/$1.xml"
}

validated() {
    MTL_DEBUG_LAYER=1 MTL_SHADER_VALIDATION=1 suite validated "$DEVICE" "$KEYWORD"
}

demo() {
    set -eo pipefail
    "$PY" -m oxibonsai generate --device "$DEVICE" | tee "$WORK/demo.txt"
    tr -s '[:space:]' ' ' <"$WORK/demo.txt" |
        grep -F "on the bank, and of having nothing to do: once or twice she had peeped" >/dev/null
}

# shellcheck disable=SC2086
times() { # name of the result, arguments
    local name="$1"
    shift
    "$PY" benchmarks/report_times.py "$@" --device "$DEVICE" $SMALL \
        --out "$WORK/results/$name.json"
}

synthetic() {
    "$PY" tools/synthetic_model.py --shape "$SHAPE" --format Q1_0 --out "$WORK/synthetic.gguf"
}

precompiled() {
    OXIBONSAI_METALLIB="$WORK/oxibonsai.metallib" demo
}

export -f build suite validated demo times synthetic precompiled
"$PYTHON" tools/mac_report.py --machine >"$WORK/results/machine.json" 2>"$WORK/logs/machine.log"
failed=""
fails() { failed="$failed $1"; }
if stage build 1200 bash -c build || ! wanted build; then
    if xcrun metal --version >/dev/null 2>&1; then
        stage metallib 600 "$PY" tools/metallib.py "$WORK/oxibonsai.metallib" || fails metallib
    else
        skipped metallib "no offline Metal compiler. $("$PYTHON" -c \
            'import sys; sys.path.insert(0, "tools"); import metallib; print(metallib.HELP)')"
    fi
    stage devices 120 "$PY" -m oxibonsai devices || fails devices
    stage demo 300 bash -c demo || fails demo
    # Times before the long suites: a Mac without a fan is still cool.
    stage kernels 900 bash -c 'times kernels kernels' || fails kernels
    stage demo-model 300 bash -c \
        'times demo-model model oxibonsai/data/alice-q1_0.gguf --chunk 32' || fails demo-model
    if stage synthetic 300 bash -c synthetic; then
        for chunk in 32 128 512; do
            stage "chunk-$chunk" 300 bash -c \
                "times chunk-$chunk model \"\$WORK/synthetic.gguf\" --chunk $chunk" ||
                fails "chunk-$chunk"
        done
        rm -f "$WORK/synthetic.gguf"
    else
        fails synthetic
    fi
    if [ -f "$WORK/oxibonsai.metallib" ]; then
        stage precompiled 300 bash -c precompiled || fails precompiled
        rm -f "$WORK/oxibonsai.metallib"
    else
        skipped precompiled "no metallib was made"
    fi
    stage suites 2400 bash -c "suite suites $DEVICE '$KEYWORD'" || fails suites
    stage cpu 1800 bash -c 'suite cpu cpu "not metal:0"' || fails cpu
    # It may fail, which the report says: what the layers find is of interest either way.
    stage validated 2400 bash -c validated || echo "validated: recorded, and does not count"
else
    fails build
fi
report || fails report
echo "report: $REPORT, $SECONDS s in all"
if [ -n "$failed" ]; then
    echo "failed:$failed"
    exit 1
fi

#!/bin/sh
# Compiles one crate of this workspace so that the fuzzer sees which of its code runs: cargo calls it
# in place of rustc (RUSTC_WORKSPACE_WRAPPER), for our own crates only. All of these flags are stable.

# Build scripts run on their own, without the fuzzer's runtime.
case " $* " in
*" --crate-name build_script_"*) exec "$@" ;;
esac

exec "$@" \
    --cfg fuzzing \
    -Copt-level=2 \
    -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares

#!/usr/bin/env bash
# phase.sh NAME COMMAND...: runs a phase of a make target, says how long it took, and notes it in the file $ARCTIC_PHASES if it is set.
set -uo pipefail
name=$1; shift
echo "== $name"
start=$(date +%s.%N)
"$@"
code=$?
seconds=$(awk -v start="$start" -v end="$(date +%s.%N)" 'BEGIN { printf "%.1f", end - start }')
if [ "$code" -ne 0 ]; then
    echo "== $name failed after $seconds s (exit $code)" >&2
    exit "$code"
fi
echo "== $name done in $seconds s"
if [ -n "${ARCTIC_PHASES:-}" ]; then
    printf '{"phase": "%s", "seconds": %s}\n' "$name" "$seconds" >>"$ARCTIC_PHASES"
fi

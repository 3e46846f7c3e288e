#!/usr/bin/env bash
# on_gpu.sh ARGUMENT...: runs Python with these arguments in this checkout. Where the bundle of `make bench-gpu-bundle`
# is there, and the machine's own python3 is the one that it is for and has torch, that one runs; else uv's environment.
set -euo pipefail
cd "$(dirname "$0")/.."

bundle=.gpu-bundle/packages.zip
if [ -f "$bundle" ] && python3 - <<'CHECK'
import sys
from importlib.util import find_spec
sys.exit(sys.version_info[:2] != (3, 12) or find_spec("torch") is None)
CHECK
then
    case "${XDG_CACHE_HOME:-}" in
        /*) cache="$XDG_CACHE_HOME/arctic" ;;
        *) cache="$HOME/.cache/arctic" ;;
    esac
    site="$cache/gpu-bundle-$(sha256sum "$bundle" | cut -c1-12)"
    if [ ! -d "$site" ]; then
        mkdir -p "$cache"
        python3 -m zipfile -e "$bundle" "$site.$$"
        mv "$site.$$" "$site"
    fi
    export PYTHONPATH="$site:$PWD:$PWD/operator:$PWD/workers:$PWD/cluster:$PWD/protos"
    exec python3 "$@"
fi
exec "$(scripts/bootstrap.sh)" run --frozen python "$@"

#!/usr/bin/env bash
# Brings a machine that has Python and root to where `uv run` works in this tree. Prints the path of uv.
# The pinned uv lives in the cache, in an environment of its own: nothing on the machine is replaced.
set -euo pipefail

uv_version=0.13.9
# As arctic_cluster.paths has it: relative values are ignored.
case "${XDG_CACHE_HOME:-}" in
    /*) cache="$XDG_CACHE_HOME/arctic" ;;
    *) cache="$HOME/.cache/arctic" ;;
esac
needed_gib=8
tools="$cache/tools/uv-$uv_version"

say() { echo "bootstrap: $*" >&2; }

# As arctic_cluster.apt: upgrades that the machine makes by itself hold the locks for minutes.
apt_get() {
    local said deadline=$((SECONDS + 600))
    until said=$(LC_ALL=C DEBIAN_FRONTEND=noninteractive apt-get "$@" 2>&1); do
        if [[ $said =~ "Permission denied" ]]; then
            echo "$said" >&2
            echo "bootstrap: apt-get may be run by root alone: become root, or have it install python3-venv" >&2
            exit 1
        elif [[ ! $said =~ "Could not get lock"|"Unable to lock" || $SECONDS -gt $deadline ]]; then
            echo "$said" >&2
            exit 1
        fi
        sleep 2
    done
}

if ! command -v python3 >/dev/null; then
    echo "bootstrap: python3 is missing: install Python 3.11 or 3.12" >&2
    exit 1
fi
python3 - <<'CHECK'
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f"bootstrap: Python {sys.version.split()[0]} found, 3.11 or 3.12 is needed (torch and deepspeed have no wheels for others)")
CHECK

# The native engine's code is compiled with the environment; without a compiler torch does its work, slowly.
if ! command -v g++ >/dev/null && ! command -v c++ >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing g++"
    apt_get update -qq
    apt_get install -y -qq --no-install-recommends g++ libc6-dev
fi

if [ ! -x "$tools/bin/uv" ]; then
    mkdir -p "$cache/tools"
    exec 9>"$cache/bootstrap.lock"
    flock --nonblock 9 || { say "waiting for another (it holds $cache/bootstrap.lock)"; flock 9; }
fi
# Asked again: whoever held the lock may have done it.
if [ ! -x "$tools/bin/uv" ]; then
    # The environment and the corpus, which come next and first; what a cluster needs besides, it asks for itself.
    free=$(df --output=avail -BG "$cache" | tail -n 1 | tr -dc 0-9)
    if [ -z "$(ls "$cache/tools")" ] && [ "$free" -lt "$needed_gib" ]; then
        echo "bootstrap: $cache has $free GiB free and $needed_gib are needed: free some on its disk" >&2
        exit 1
    fi
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        say "installing python3-venv"
        apt_get update -qq
        apt_get install -y -qq --no-install-recommends python3-venv
    fi
    say "installing uv $uv_version"
    rm -rf "$cache"/tools/*.partial
    python3 -m venv "$tools.partial"
    "$tools.partial/bin/python" -m pip install -q --disable-pip-version-check "uv==$uv_version" >&2
    mv "$tools.partial" "$tools"
fi
echo "$tools/bin/uv"

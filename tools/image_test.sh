#!/usr/bin/env bash
# Runs kubeflow/Dockerfile line by line without a container engine, in a Debian 13 of its own, and then the image's
# program as the image's user: help, entrypoint, one small pipeline run. Needs root, mmdebstrap, and a set-up checkout.
#   ROOTS=DIR   where to make the two file systems (default: a temporary folder, deleted at the end)
# shellcheck disable=SC2015,SC2016
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] && command -v mmdebstrap >/dev/null || { echo "needs root and mmdebstrap" >&2; exit 2; }
roots=${ROOTS:-$(mktemp -d)}
mkdir -p "$roots"
cleanup() {
  awk -v below="$roots/" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount
  [ -n "${ROOTS:-}" ] || rm -rf --one-file-system "$roots"
}
trap cleanup EXIT
say() { printf '\033[1mimage:\033[0m %s\n' "$*" >&2; }

# What the official image holds: Debian's minimal system, and a Python 3.11 below /usr/local with the libraries it needs.
base() {
  local mirror prefix
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | grep -m 1 '/debian/\?$')
  prefix=$(.venv/bin/python -c 'import sys; print(sys.base_prefix)')
  say "making a Debian 13 in $1"
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,netbase,tzdata,libbz2-1.0,libcrypt1,libexpat1,libffi8,libgdbm6t64,liblzma5,libncursesw6,libreadline8t64,libsqlite3-0,libssl3t64,libuuid1,zlib1g \
    trixie "$1" "$mirror"
  mkdir -p "$1/usr/local/bin" "$1/usr/local/lib"
  cp -a "$prefix/bin/python3.11" "$1/usr/local/bin/"
  ln -s python3.11 "$1/usr/local/bin/python3" && ln -s python3.11 "$1/usr/local/bin/python"
  find "$prefix/lib" -maxdepth 1 -name 'libpython3*' -exec cp -a {} "$1/usr/local/lib/" \;
  tar -C "$prefix/lib" --exclude=site-packages --exclude=test --exclude=__pycache__ -c python3.11 | tar -C "$1/usr/local/lib" -x
  # so that what this machine trusts and how it finds its hosts holds inside too
  cp -L /etc/resolv.conf "$1/etc/resolv.conf"
  cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/ca-certificates.crt"
  chroot "$1" sh -c 'ldconfig && python -m ensurepip && ln -s pip3 /usr/local/bin/pip' >/dev/null
}

enter() { # ROOT USER COMMAND...: with the ENV and ARG lines so far
  local root=$1 user=$2
  shift 2
  env -i PIP_DISABLE_PIP_VERSION_CHECK=1 UV_SYSTEM_CERTS=1 PIP_CERT=/etc/ssl/certs/ca-certificates.crt PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin "${environment[@]}" \
    "$(command -v chroot)" --userspec="$user" "$root" sh -c 'cd "$0" && exec "$@"' "$folder" "$@" </dev/null
}

copy() { # ROOT SOURCE... TARGET
  local root=$1 from=$PWD source target=${*: -1} sources=("${@:2:$#-2}") ignored=(--exclude=__pycache__)
  if [[ ${sources[0]} == --from=* ]]; then from=$roots/${sources[0]#--from=} sources=("${sources[@]:1}") ignored=(); fi
  [[ $target == /* ]] || target=$folder/$target
  mkdir -p "$root/$target"
  for source in "${sources[@]}"; do
    if [ -d "$from/$source" ]; then tar -C "$from/$source" "${ignored[@]}" -c . | tar -C "$root/$target" -x --no-same-owner
    else cp "$from/$source" "$root/$target/"; fi
  done
}

expand() { # TEXT: with the ARGs and ENVs so far put in
  local text=$1 pair
  for pair in "${environment[@]}"; do text=${text//"\${${pair%%=*}}"/${pair#*=}}; done
  printf '%s' "$text"
}

base "$roots/base"
environment=() folder=/ user=0:0 root='' entrypoint=()
while IFS= read -r line; do
  case $line in '' | '#'*) continue ;; esac
  read -ra words <<<"$(expand "${line#* }")"
  say "$(cut -c -150 <<<"$line")"
  case $line in
    FROM*)
      root=$roots/final environment=() folder=/ user=0:0
      if [[ $line == *' AS '* ]]; then root=$roots/${line##* AS }; fi
      cp -a "$roots/base" "$root"
      # as every container has them; Python's locks need the second
      mount -t proc proc "$root/proc"
      mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
      ;;
    ARG*) [ -z "$root" ] || environment+=("${words[0]%%=*}=$(printenv "${words[0]%%=*}" || echo "${words[0]#*=}")") ;;
    ENV*) environment+=("${words[@]}") ;;
    WORKDIR*) folder=${words[0]} && mkdir -p "$root/$folder" ;;
    COPY*) copy "$root" "${words[@]}" ;;
    RUN*) enter "$root" "$user" sh -c "${line#RUN }" ;;
    USER*) user=${words[0]} ;;
    ENTRYPOINT*) mapfile -t entrypoint < <(grep -o '"[^"]*"' <<<"$line" | tr -d '"') ;;
    *) echo "tools/image_test.sh does not know: $line" >&2 && exit 1 ;;
  esac
done < <(sed -e ':a' -e '/\\$/{N;s/ *\\\n */ /;ba' -e '}' kubeflow/Dockerfile)

say "checking the image as user $user"
enter "$root" "$user" python -c '
import os, pathlib, edgeline
assert os.getuid() and "site-packages" in edgeline.__file__, edgeline.__file__
installed = pathlib.Path(edgeline.__file__).parent
assert not os.access(installed, os.W_OK) and list(installed.glob("__pycache__/*.pyc")), "no bytecode"'
enter "$root" "$user" edgeline --help >/dev/null
enter "$root" "$user" "${entrypoint[@]}" --help >/dev/null
enter "$root" "$user" edgeline run --root /tmp/run --recipe int8 --epochs 1 --max-accuracy-drop 1 --output json
say "the image's program works; $(du -sh --exclude=proc "$root" | cut -f 1)"

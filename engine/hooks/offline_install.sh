#!/bin/sh
# On the hospital's PC, in the folder that offline_collect.sh made: installs without internet.
#
#   sh offline_install.sh TARGET         for example /opt/hilum
#
# TARGET becomes an environment of its own; a TARGET that is there is brought up to date.
set -eu
if [ $# -ne 1 ]; then
  echo "usage: sh offline_install.sh TARGET" >&2
  exit 2
fi
case $1 in /*) target=$1 ;; *) target=$(pwd -P)/$1 ;; esac
cd -- "$(dirname -- "$0")"
if ! sha256sum --check --quiet SHA256SUMS; then
  echo "offline_install.sh: files were changed or are missing; copy the folder again" >&2
  exit 1
fi
wanted=$(cat PYTHON)
python=${PYTHON:-python$wanted}
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || found=none
if [ "$found" != "$wanted" ]; then
  echo "offline_install.sh: $python is Python $found, these packages are for $wanted; install" \
    "python$wanted and python$wanted-venv, or collect anew with this Python" >&2
  exit 3
fi
umask 022 # another account will run it
"$python" -m venv "$target"
"$target/bin/python" -m pip install --disable-pip-version-check --no-index --find-links . \
  --upgrade "hilum[$(cat EXTRAS)]"
"$target/bin/python" -m engine.hooks "$target/hooks"
# Looks at this machine, and says what is missing. Caches belong to the user who works: README.md.
"$target/bin/python" -m engine.doctor

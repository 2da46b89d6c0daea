#!/usr/bin/env bash
# Builds the library for Windows with MinGW-w64 and runs its tests and the example under wine.
#
#     native/wine.sh [FOLDER]
#
# FOLDER keeps the build; without it a temporary one is used. Needs cmake, gcc-mingw-w64-x86-64 and
# wine64; on Debian, as root, it installs what is missing. Needs no screen.
set -euo pipefail
source_folder=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
folder=$work
if [ $# -gt 0 ]; then
  mkdir -p "$1"
  folder=$(cd "$1" && pwd)
fi

missing=()
command -v cmake >/dev/null || missing+=(cmake)
command -v make >/dev/null || missing+=(make)
command -v x86_64-w64-mingw32-gcc >/dev/null || missing+=(gcc-mingw-w64-x86-64)
command -v wine >/dev/null || missing+=(wine wine64)
if [ ${#missing[@]} -gt 0 ]; then
  if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "missing: ${missing[*]}" >&2
    exit 3
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# A prefix of its own: nothing of the user's is touched, no window opened, no .NET or browser fetched.
export WINEPREFIX="$work/prefix" WINEARCH=win64 WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml="
export LC_ALL=C.UTF-8 # wine writes file names in the locale's letters: a bare one has no umlauts
unset DISPLAY WAYLAND_DISPLAY
trap 'wineserver -k 2>/dev/null || true; wineserver -w 2>/dev/null || true; rm -rf "$work"' EXIT
x86_64-w64-mingw32-gcc --version | head -n 1
wine --version 2>/dev/null
mkdir "$WINEPREFIX"
wineserver --persistent=600 # else each program starts a Windows of its own
timeout 120 wineboot --init >/dev/null 2>&1 || true # complains of its 32-bit half

cmake -S "$source_folder" -B "$folder/windows" -DCMAKE_SYSTEM_NAME=Windows \
  -DCMAKE_SYSTEM_PROCESSOR=x86_64 -DCMAKE_C_COMPILER=x86_64-w64-mingw32-gcc \
  -DCMAKE_CROSSCOMPILING_EMULATOR="$(command -v wine)" -DHILUM_WERROR=ON >/dev/null
cmake --build "$folder/windows" >/dev/null
timeout 120 ctest --test-dir "$folder/windows" --output-on-failure

# The program of the README, with the DLL: of every golden file, fine or corrupt, it says what it says
# on Linux.
cmake -S "$source_folder" -B "$folder/linux" -DHILUM_WERROR=ON >/dev/null
cmake --build "$folder/linux" --target hilum_example >/dev/null
printf '#!/bin/sh\nwine "%s" "$@" >"%s/out" 2>"%s/err"\ncode=$?\n' \
  "$folder/windows/native/tests/hilum_example.exe" "$work" "$work" >"$work/example"
printf 'tr -d "\\r" <"%s/out"\ntr -d "\\r" <"%s/err" >&2\nexit $code\n' "$work" "$work" >>"$work/example"
chmod +x "$work/example"
files=("$source_folder"/formats/golden/{valid,corrupt}/*.hilum)
cmake -D ONE="$folder/linux/native/tests/hilum_example" -D OTHER="$work/example" \
  -D FILES="$(IFS=';' && echo "${files[*]}")" -P "$source_folder/native/tests/compare.cmake"

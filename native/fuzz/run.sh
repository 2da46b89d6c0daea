#!/usr/bin/env bash
# Fuzzes the opening of containers, and says what the inputs reached.
#
#     native/fuzz/run.sh short [FOLDER]      60 seconds (our CI)
#     native/fuzz/run.sh long [FOLDER]       200 million executions: hours; may be stopped with Ctrl-C
#     native/fuzz/run.sh coverage [FOLDER]   only the lines and branches reached by FOLDER/corpus
#
# FOLDER keeps the builds, the corpus (a later run goes on with it), the log and any finding; without it
# a temporary one is used. Needs clang, its runtime libraries, llvm and cmake; on Debian, as root, it
# installs what is missing.
set -euo pipefail
mode=${1:-short}
case $mode in short | long | coverage) ;; *)
  sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
source_folder=$(cd "$(dirname "$0")/../.." && pwd)
if [ $# -gt 1 ]; then
  mkdir -p "$2"
  folder=$(cd "$2" && pwd)
else
  folder=$(mktemp -d)
  trap 'compgen -G "$folder/finding-*" >/dev/null || rm -rf "$folder"' EXIT
fi

missing=()
for package in clang llvm cmake make libclang-rt-dev; do
  case $package in
    libclang-rt-*) compgen -G '/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a' ;;
    llvm) command -v llvm-cov ;;
    *) command -v "$package" ;;
  esac >/dev/null || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "missing: ${missing[*]}" >&2
    exit 3
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

build() { # folder, options
  cmake -S "$source_folder" -B "$1" -DCMAKE_C_COMPILER=clang -DHILUM_FUZZ=ON -DHILUM_WERROR=ON \
    -DBUILD_TESTING=OFF "${@:2}" >/dev/null
  cmake --build "$1" --target open_fuzz >/dev/null
}

mkdir -p "$folder/corpus"
golden=("$source_folder/formats/golden/valid" "$source_folder/formats/golden/corrupt")
log="$folder/$mode.log"
code=0
if [ "$mode" != coverage ]; then
  build "$folder/build" -DHILUM_SANITIZE=ON
  limit=(-max_total_time="${HILUM_FUZZ_SECONDS:-60}")
  [ "$mode" = short ] || limit=(-runs="${HILUM_FUZZ_RUNS:-200000000}")
  # A small quarantine keeps the heap in the cache: it doubles the rate. Leaks are counted by the
  # target itself, at every execution.
  export ASAN_OPTIONS=quarantine_size_mb=1:malloc_context_size=2:detect_leaks=0
  export UBSAN_OPTIONS=print_stacktrace=1
  nice -n 10 "$folder/build/native/fuzz/open_fuzz" -max_len=16384 -timeout=10 -rss_limit_mb=1024 \
    -detect_leaks=0 -print_final_stats=1 -artifact_prefix="$folder/finding-" "${limit[@]}" \
    "$folder/corpus" "${golden[@]}" >"$log" 2>&1 || code=$?
  [ $code != 72 ] || code=0 # stopped by Ctrl-C
  grep -E 'broken:|ERROR|runtime error|opened|Done|stat::|Test unit' "$log" || tail -n 5 "$log"
fi

# The same sources without sanitizers, over the corpus: what was reached.
build "$folder/coverage" -DHILUM_COVERAGE=ON -DCMAKE_BUILD_TYPE=Debug
LLVM_PROFILE_FILE="$folder/coverage.profraw" "$folder/coverage/native/fuzz/open_fuzz" -runs=0 \
  -max_len=16384 "$folder/corpus" "${golden[@]}" >/dev/null 2>&1
llvm-profdata merge -o "$folder/coverage.profdata" "$folder/coverage.profraw"
(cd "$source_folder/native/src" && llvm-cov report "$folder/coverage/native/fuzz/open_fuzz" \
  -instr-profile="$folder/coverage.profdata" --show-region-summary=false \
  container.c validate.c crc32c.c status.c)
llvm-cov show "$folder/coverage/native/fuzz/open_fuzz" -instr-profile="$folder/coverage.profdata" \
  "$source_folder/native/src" >"$folder/coverage.txt"
exit "$code"

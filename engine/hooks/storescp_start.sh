#!/bin/sh
# Receives pictures over DICOM with dcmtk's storescp and hands each over to the spool.
#
#   storescp_start.sh file       a picture at a time, as soon as it is there (-xcr); the default
#   storescp_start.sh study      a study at a time, two seconds after its last picture (-xcs)
#
# storescp runs its command through a shell. What a sender chooses (AE titles, UIDs, names) is
# therefore kept out of that command: only #p, which is the folder below or one that storescp names
# by the clock, and #f, which with --unique-filenames is a number that storescp draws.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
# shellcheck source=hilum.conf
. "${HILUM_CONF:-/etc/hilum/hilum.conf}"
umask 077
mode=${1:-file}

stop() {
  echo "storescp_start.sh: $*" >&2
  exit 2
}

case $mode in file | study) ;; *) stop "$mode: expected file or study" ;; esac
# Both become words of the command that a shell reads.
for path in "$here" "$HILUM_RECEIVED"; do
  case $path in
    *[!A-Za-z0-9/._-]*) stop "$path: use letters, digits and / . _ - only" ;;
    /*) ;;
    *) stop "$path: give the whole path, from /" ;;
  esac
done
# Debian's path first: Python packages bring other programs of this name.
storescp=${HILUM_STORESCP:-/usr/bin/storescp}
[ -x "$storescp" ] || stop "$storescp is missing: apt-get install dcmtk"

export HILUM_SPOOL
incoming=$HILUM_SPOOL/incoming
mkdir -p -- "$HILUM_RECEIVED" "$incoming"

# A picture must appear in the spool at once and whole, which only a rename within one disk does.
# A second name for a file is possible just there.
probe=.probe.$$
: >"$HILUM_RECEIVED/$probe"
ln -- "$HILUM_RECEIVED/$probe" "$incoming/$probe" 2>/dev/null && same=yes || same=no
rm -f -- "$HILUM_RECEIVED/$probe" "$incoming/$probe"
[ "$same" = yes ] || stop "HILUM_RECEIVED and HILUM_SPOOL have to be on one local disk"

# What an earlier run received and did not hand over, because it was killed in between.
for left in "$HILUM_RECEIVED"/*; do
  if [ -d "$left" ]; then
    "$here/storescp_study.sh" "$left"
  elif [ -f "$left" ]; then
    "$here/storescp_file.sh" "$left"
  fi
done

# +xa: the sender chooses the compression; +uf: see above; -fe: so that people see what it is.
set -- +xa +uf -fe .dcm -aet "$HILUM_AET" -od "$HILUM_RECEIVED"
if [ "$mode" = study ]; then
  # One process, because it has to see the end of a study; -ss names the folder by the clock.
  set -- "$@" -ss study -tos 2 -xcs "$here/storescp_study.sh \"#p\""
else
  # A process for each sender: one that keeps its line open does not hold up the others.
  set -- "$@" --fork -xcr "$here/storescp_file.sh \"#p/#f\""
fi
exec "$storescp" "$@" "$HILUM_PORT"

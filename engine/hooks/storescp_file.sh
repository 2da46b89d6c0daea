#!/bin/sh
# Run by storescp for each picture (-xcr): storescp_file.sh FILE. Moves it into the spool.
# storescp does not wait for it and does not look at what it says or returns; what fails here stays
# in HILUM_RECEIVED, and storescp_start.sh hands it over when it is started the next time.
set -eu
umask 077
[ -f "$1" ] || exit 0 # handed over already
# Within one disk mv renames: the worker sees the whole picture or none.
mv -- "$1" "$HILUM_SPOOL/incoming/${1##*/}"

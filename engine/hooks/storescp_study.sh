#!/bin/sh
# Run by storescp for each study (-xcs): storescp_study.sh FOLDER. Moves its pictures into the spool.
# What fails here stays where it is; storescp_start.sh hands it over when it is started again.
set -eu
umask 077
[ -d "$1" ] || exit 0
for picture in "$1"/*; do
  [ ! -f "$picture" ] || mv -- "$picture" "$HILUM_SPOOL/incoming/${picture##*/}"
done
rmdir -- "$1"

#!/bin/sh
# The resident worker: answers every picture in the spool until it is stopped.
# Further arguments are passed on: "worker.sh --idle 600" ends after ten minutes without work.
set -eu
# shellcheck source=hilum.conf
. "${HILUM_CONF:-/etc/hilum/hilum.conf}"
umask 077
# By the environment: an argument could be read by every user of this PC.
export HILUM_ORTHANC_USER HILUM_ORTHANC_PASSWORD
# HILUM_OPTIONS is a list of words.
# shellcheck disable=SC2086
exec "$HILUM_PYTHON" -m engine.serve "$HILUM_SPOOL" --output-dir "$HILUM_RESULTS" \
  $HILUM_OPTIONS "$@"

#!/bin/sh
# Sends dead letters again, each to where it was to go; what got there is removed. Does nothing
# where there are none: may be run every quarter of an hour.
set -eu
# shellcheck source=hilum.conf
. "${HILUM_CONF:-/etc/hilum/hilum.conf}"
umask 077
# By the environment: an argument could be read by every user of this PC.
export HILUM_ORTHANC_USER HILUM_ORTHANC_PASSWORD
[ -d "$HILUM_RESULTS/dead_letters" ] || exit 0
exec "$HILUM_PYTHON" -m engine.deliver "$HILUM_RESULTS/dead_letters" "$@"

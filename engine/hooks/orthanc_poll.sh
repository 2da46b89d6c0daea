#!/bin/sh
# Asks Orthanc for new pictures until it is stopped; arguments are passed on, see --help.
set -eu
# shellcheck source=hilum.conf
. "${HILUM_CONF:-/etc/hilum/hilum.conf}"
umask 077
# By the environment: an argument could be read by every user of this PC.
export HILUM_ORTHANC HILUM_ORTHANC_USER HILUM_ORTHANC_PASSWORD
exec "$HILUM_PYTHON" -m engine.hooks.orthanc_poll "$HILUM_SPOOL" "$@"

#!/bin/sh
# On a PC with internet: collects all that an installation without internet needs.
#
#   offline_collect.sh SOURCE WHEELHOUSE
#
# SOURCE is a checkout or a .whl of Hilum. The PC has the operating system, the processor family and
# the Python of the hospital's: files for another would be refused there.
# PYTHON=/path/to/python3.11 chooses the Python, EXTRAS=dicom the extras (default dicom,pacs).
set -eu
python=${PYTHON:-python3.11}
extras=${EXTRAS:-dicom,pacs}
if [ $# -ne 2 ]; then
  echo "usage: offline_collect.sh SOURCE WHEELHOUSE" >&2
  exit 2
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
source=$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd -P)/$(basename -- "$1")
mkdir -p -- "$2"
cd -- "$2"
"$python" -m pip wheel --disable-pip-version-check --wheel-dir . "${source}[$extras]"
"$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' >PYTHON
printf '%s\n' "$extras" >EXTRAS
cp -- "$here/offline_install.sh" "$here/offline_install.ps1" .
sha256sum -- *.whl PYTHON EXTRAS offline_install.sh offline_install.ps1 >SHA256SUMS
echo "$(find . -name '*.whl' | wc -l) packages for Python $(cat PYTHON) in $(pwd -P)"
echo "take the folder to the hospital's PC and run there: sh offline_install.sh /opt/hilum"

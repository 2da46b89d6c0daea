# On the hospital's Windows PC, in the folder that offline_collect.ps1 made: installs without internet.
#   powershell -ExecutionPolicy Bypass -File offline_install.ps1 -Target C:\hilum\python
param([Parameter(Mandatory = $true)][string]$Target)
$ErrorActionPreference = 'Stop'
Set-Location -LiteralPath $PSScriptRoot
foreach ($line in Get-Content -LiteralPath 'SHA256SUMS') {
  $sum, $name = $line -split '  ', 2
  if ((Get-FileHash -Algorithm SHA256 -LiteralPath $name).Hash -ne $sum) {
    throw "$name was changed; copy the folder again"
  }
}
$version = (Get-Content -LiteralPath 'PYTHON' -TotalCount 1).Trim()
$extras = (Get-Content -LiteralPath 'EXTRAS' -TotalCount 1).Trim()
& py "-$version" -m venv $Target
if ($LASTEXITCODE -ne 0) { throw "Python $version is missing: run its installer, all users, with py" }
$python = Join-Path $Target 'Scripts\python.exe'
& $python -m pip install --disable-pip-version-check --no-index --find-links . --upgrade "hilum[$extras]"
if ($LASTEXITCODE -ne 0) { throw 'pip install failed: see above' }
& $python -m engine.hooks (Join-Path (Split-Path -Parent $Target) 'hooks')
# Prepares this machine, and says what is missing.
& $python -m engine.doctor
exit $LASTEXITCODE

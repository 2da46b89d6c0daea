# On a Windows PC with internet: collects all that an installation without internet needs.
#   powershell -ExecutionPolicy Bypass -File offline_collect.ps1 -Source C:\src\hilum -Wheelhouse D:\wheelhouse
# Source is a checkout (needs a C compiler) or a .whl of Hilum.
param(
  [Parameter(Mandatory = $true)][string]$Source,
  [Parameter(Mandatory = $true)][string]$Wheelhouse,
  [string]$Version = '3.11',
  [string]$Extras = 'dicom,pacs'
)
$ErrorActionPreference = 'Stop'
$folder = (New-Item -ItemType Directory -Force -Path $Wheelhouse).FullName
$given = (Resolve-Path -LiteralPath $Source).Path
& py "-$Version" -m pip wheel --disable-pip-version-check --wheel-dir $folder "$given[$Extras]"
if ($LASTEXITCODE -ne 0) { throw 'pip wheel failed: see above' }
Set-Content -LiteralPath (Join-Path $folder 'PYTHON') -Value $Version -Encoding Ascii
Set-Content -LiteralPath (Join-Path $folder 'EXTRAS') -Value $Extras -Encoding Ascii
Copy-Item -LiteralPath (Join-Path $PSScriptRoot 'offline_install.ps1') -Destination $folder
Copy-Item -LiteralPath (Join-Path $PSScriptRoot 'offline_install.sh') -Destination $folder
Get-ChildItem -LiteralPath $folder -File | Where-Object { $_.Name -ne 'SHA256SUMS' } |
  ForEach-Object { (Get-FileHash -Algorithm SHA256 -LiteralPath $_.FullName).Hash.ToLower() + '  ' + $_.Name } |
  Set-Content -LiteralPath (Join-Path $folder 'SHA256SUMS') -Encoding Ascii
Write-Output "take $folder to the hospital's PC and run offline_install.ps1 there"

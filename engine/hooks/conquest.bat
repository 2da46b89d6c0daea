@echo off
rem Run by Conquest for each picture, without arguments: moves what was received into the spool.
rem Both folders have to be on one drive: then a picture appears in the spool at once and whole.
rem A file that is still being written cannot be moved; the next run takes it.
setlocal DisableDelayedExpansion
set "RECEIVED=C:\hilum\received"
set "SPOOL=C:\hilum\spool"
if not exist "%SPOOL%\incoming\" exit /b 2
for %%f in ("%RECEIVED%\*.dcm") do move /y "%%f" "%SPOOL%\incoming\" >nul 2>&1
exit /b 0

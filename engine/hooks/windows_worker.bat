@echo off
rem The resident worker on Windows: answers every picture in the spool until it is stopped.
rem Run by the task of windows_task.xml; in a window of its own it shows what it does.
setlocal
set "PYTHON=C:\hilum\python\Scripts\python.exe"
set "SPOOL=C:\hilum\spool"
set "RESULTS=C:\hilum\results"
rem For example: --sr --sc --orthanc http://127.0.0.1:8042, or --sr --sc --store PACS@10.0.0.5:104
set "OPTIONS="
"%PYTHON%" -m engine.serve "%SPOOL%" --output-dir "%RESULTS%" %OPTIONS% 2>> C:\hilum\worker.log
exit /b %ERRORLEVEL%

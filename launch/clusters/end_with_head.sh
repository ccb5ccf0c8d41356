#!/usr/bin/env bash
# Ends the Ray of one folder on this host once the cluster's head has not answered for a minute: `ray down` ends the head alone.
#
#   setsid --fork bash launch/clusters/end_with_head.sh HEAD:PORT FOLDER >/dev/null 2>&1 </dev/null
#
# FOLDER is what its Ray was started with as --temp-dir; other people's Ray on this host goes on.
set -u
host="${1%:*}" port="${1##*:}" folder="$2" missed=0
while sleep 10; do
    if timeout 5 bash -c ": <'/dev/tcp/$host/$port'" 2>/dev/null; then missed=0; else missed=$((missed + 1)); fi
    if [ "$missed" -ge 6 ]; then break; fi
done
trap '' TERM # this process bears the folder's name, too
for signal in TERM TERM TERM KILL; do
    pkill "-$signal" -u "$(id -u)" -f "[/]${folder#/}" || break
    sleep 4
done

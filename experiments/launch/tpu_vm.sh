#!/bin/bash
# Every host of a TPU slice: experiments/launch/tpu_vm.sh NAME ZONE --config=FILE --workdir=FOLDER
# NAME is that of the TPU VM; the repository is installed on its hosts in ~/alphallm, and FOLDER is on a disk that all of
# them see (a mounted bucket or Filestore). Preempted or cut off, the same command continues the run.
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "usage: $0 NAME ZONE --config=FILE --workdir=FOLDER [--config.FIELD=VALUE ...]" >&2
    exit 2
fi
name=$1 zone=$2
shift 2
# Quoted once more, for the shell on the other side.
command="cd ~/alphallm && python3 -m alphallm.train --distributed=auto$(printf " %q" "$@")"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"

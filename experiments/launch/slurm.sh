#!/bin/bash
# One process a node, all GPUs of a node its own: sbatch experiments/launch/slurm.sh --config=FILE --workdir=FOLDER
# The folder is on a disk that all nodes see. Two minutes before the time is up SLURM sends SIGTERM: the run saves and
# leaves with status 75, and the job is put in the queue again, where the same command continues it.
#SBATCH --job-name=alphallm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

# JAX would give each task of SLURM one GPU; here a task has its node's.
JAX_LOCAL_DEVICE_IDS=$(seq --separator=, 0 $((${SLURM_GPUS_ON_NODE:?start this with sbatch} - 1)))
export JAX_LOCAL_DEVICE_IDS

srun --kill-on-bad-exit=1 python -m alphallm.train --distributed=auto "$@"
status=$?
# 75: asked to stop. 76: another node was lost. Both continue from the last checkpoint.
if [ $status -eq 75 ] || [ $status -eq 76 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status

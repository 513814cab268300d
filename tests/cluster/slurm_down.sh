#!/usr/bin/env bash
# Stop the private Slurm of slurm_up.sh and take its links away.
set -u
state=$(realpath -m "$1")
export SLURM_CONF="$state/slurm.conf"
scancel --user=root 2>/dev/null
sleep 0.5
for daemon in slurmd slurmctld; do
  [ -s "$state/$daemon.pid" ] && kill "$(cat "$state/$daemon.pid")" 2>/dev/null
done
for file in slurm.conf gres.conf; do
  [ "$(readlink "/etc/slurm/$file" 2>/dev/null)" = "$state/$file" ] && rm "/etc/slurm/$file"
done
for _ in $(seq 40); do
  alive=0
  for daemon in slurmd slurmctld; do
    [ -s "$state/$daemon.pid" ] && kill -0 "$(cat "$state/$daemon.pid")" 2>/dev/null && alive=1
  done
  [ $alive = 0 ] && exit 0
  sleep 0.25
done
echo "a daemon is still alive" >&2
exit 1

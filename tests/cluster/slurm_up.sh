#!/usr/bin/env bash
# Start a private Slurm of one node on loopback, without munge, cgroups or slurmdbd, with fake GPUs.
# usage: slurm_up.sh STATE_DIR [NUMBER_OF_FAKE_GPUS]
set -euo pipefail
state=$(realpath -m "$1")
gpus=${2:-2}
rm -rf "$state"
mkdir -p "$state"/{ctld,d,log,dev}
host=$(hostname -s)
read -r controller_port node_port < <(python3 -c '
import socket
sockets = [socket.socket() for _ in range(2)]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*[s.getsockname()[1] for s in sockets])')
cpus=$(nproc --all)  # plain nproc obeys OMP_NUM_THREADS
memory=$(awk '/MemTotal/ {print int($2 / 1024) - 512}' /proc/meminfo)

# A GPU is a link to a character device: plain files get no CUDA_VISIBLE_DEVICES.
for i in $(seq 0 $((gpus - 1))); do ln -s /dev/null "$state/dev/nvidia$i"; done
cat > "$state/gres.conf" <<CONF
NodeName=$host Name=gpu Type=fake Flags=nvidia_gpu_env File=$state/dev/nvidia[0-$((gpus - 1))]
CONF

# NoInAddrAny keeps the daemons, which trust everybody here, on loopback.
# MinJobAge lets squeue still tell how a finished job ended.
cat > "$state/slurm.conf" <<CONF
ClusterName=ct3dtest
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
AuthType=auth/none
CredType=cred/none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/log/slurmctld.log
SlurmdLogFile=$state/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
DefMemPerCPU=1000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
ReturnToService=2
MinJobAge=3600
InactiveLimit=0
KillWait=5
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$memory Gres=gpu:fake:$gpus State=UNKNOWN
PartitionName=cpu Nodes=$host Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=$host Default=NO MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$state/slurm.conf"

# A job's inner srun loses SLURM_CONF and looks at Slurm's built-in place.
if [ -e /etc/slurm/slurm.conf ] && [ ! -L /etc/slurm/slurm.conf ]; then
  echo "refusing: /etc/slurm/slurm.conf belongs to a real cluster" >&2
  exit 2
fi
mkdir -p /etc/slurm
ln -sfn "$state/slurm.conf" /etc/slurm/slurm.conf
ln -sfn "$state/gres.conf" /etc/slurm/gres.conf
slurmctld -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF"
for _ in $(seq 80); do
  [ "$(sinfo -h -n "$host" -o %t -p cpu 2>/dev/null || true)" = idle ] && exit 0
  sleep 0.25
done
echo "Slurm did not come up" >&2
tail -n 20 "$state"/log/*.log >&2
exit 1

#!/bin/bash
# A sweep as a job array on a real Slurm: a cluster of this one machine, in a folder of its own, from Debian's packages.
# One task is requeued in the middle, one is told that its time is nearly up, one is killed with its program; then every
# point must have finished with the very tensors of the same sweep without Slurm.
# usage: tools/try_slurm.sh [PROGRAM]     as root, in a container or on a machine that runs no Slurm; about 5 minutes
set -euo pipefail
program=$(realpath "${1:-build/eigentrace}")
here=$(cd "$(dirname "$0")/.." && pwd)
say() { printf '\n== %s\n' "$*" >&2; }
die() { printf 'try_slurm: %s\n' "$*" >&2; exit 1; }
[ "$(id -u)" -eq 0 ] || die "run as root: slurmd starts tasks as their user"
[ -x "$program" ] || die "no program '$program'; run make build"

missing=""
for package in slurmctld slurmd slurm-client munge; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "install ok installed" || missing="$missing $package"
done
if [ -n "$missing" ]; then
  say "installing$missing"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

work=$(mktemp -d /tmp/try-slurm.XXXXXX)
chmod 755 "$work"  # munge wants its socket reachable for all
daemons=()
finish() {
  for daemon in "${daemons[@]}"; do kill "$daemon" 2>/dev/null || true; done
  wait
  [ "${keep:-no}" = yes ] && echo "kept: $work" >&2 || rm -rf "$work"
}
trap finish EXIT
trap 'keep=yes' ERR

say "a cluster of one node in $work ($(slurmd -V))"
node=$(hostname -s)
export SLURM_CONF=$work/slurm.conf
mkdir -m 755 "$work/munge" "$work/state" "$work/spool"
(umask 077 && head -c 1024 /dev/urandom >"$work/munge/key")
cat >"$SLURM_CONF" <<CONF
ClusterName=try
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$work/munge/socket
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=20
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=try Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
# No plugin above uses control groups, yet slurmd sets up one of its own kind of them; 23.11 and later can do without.
case $(slurmd -V) in
  *\ 2[0-2].* | *\ 23.0*)
    if [ -d /sys/fs/cgroup/freezer ]; then
      echo "CgroupPlugin=cgroup/v1"
    else
      printf 'CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\n'
    fi ;;
  *) echo "CgroupPlugin=disabled" ;;
esac >"$work/cgroup.conf"
start() { "$@" >>"$work/daemons.log" 2>&1 & daemons+=($!); }
start munged --foreground --key-file="$work/munge/key" --socket="$work/munge/socket" --pid-file="$work/munge/pid" \
  --log-file="$work/munge/log" --seed-file="$work/munge/seed"
start slurmctld -D
start slurmd -D -N "$node"
for _ in $(seq 60); do sinfo -h -o %t 2>/dev/null | grep -q idle && break; sleep 1; done
sinfo -h -o %t | grep -q idle || { keep=yes; tail -n 20 "$work"/*.log >&2; die "the cluster did not come up"; }
sinfo >&2

cat >"$work/sweep.yaml" <<SWEEP
format: eigentrace-sweep/1
base_config: $here/tasks/experiments/demo-softmax.yaml
set: {train.total_steps: 800, train.stop_criterion: null, train.checkpoint_every: 100, train.eval_every: 800}
grid: {train.lr: [2e-3, 5e-3]}
seeds: [1, 2]
SWEEP
cd "$work"

say "the sweep as a job array"
"$program" sweep sweep.yaml --out array --slurm --slurm-options "--ntasks=1 --cpus-per-task=1 --time=10" >submit
cat submit >&2
job=$(bash submit | awk '{print $4}')

metrics() { echo "$work/array/runs/$1/metrics.jsonl"; }
until_step() { # POINT STEP: its training has come so far
  for _ in $(seq 600); do
    step=$(tail -n 1 "$(metrics "$1")" 2>/dev/null | sed -n 's/.*"step":\([0-9]*\).*/\1/p' || true)
    [ "${step:-0}" -ge "$2" ] && return
    sleep 0.2
  done
  die "$1 did not reach step $2"
}
point=(lr=2e-3_seed=1 lr=2e-3_seed=2 lr=5e-3_seed=1 lr=5e-3_seed=2)

until_step "${point[0]}" 240
say "task 0 is requeued at step $step"
scontrol requeue "${job}_0"
until_step "${point[1]}" 240
say "task 1 is told at step $step that its time is nearly up"
timeout 5 scancel --batch --signal=USR1 "${job}_1" || true  # it asks again, and the task is in the queue by then
until_step "${point[2]}" 240
say "task 2 loses its program at step $step: kill -9 of the sweep and of the training"
worker=$(pgrep -f -- "--point ${point[2]} ")
kill -9 $worker $(pgrep -P "$worker")

wait_for() { # JOB: all of its tasks have ended
  for _ in $(seq 600); do
    [ -z "$(squeue -h -j "$1" 2>/dev/null)" ] && return
    sleep 1
  done
  die "job $1 did not end"
}
wait_for "$job"
"$program" summary array >&2
tail -n +1 array/slurm-*.log >&2
grep -q "time is nearly up" array/slurm-*.log >&2 || die "task 1 did not requeue itself"

say "the same array once more: only what is not finished goes on"
job=$(bash submit | awk '{print $4}')
wait_for "$job"
"$program" summary array >&2
"$program" summary array --json >summary.json
[ "$(grep -c '"state": "finished"' summary.json)" -eq 4 ] || { keep=yes; die "not every point has finished"; }

say "the same sweep without Slurm"
"$program" sweep sweep.yaml --out plain --threads 1 >/dev/null
tensors() { # a safetensors file without its header, whose length stands in the first 8 bytes
  tail -c +$((9 + $(od -An -t u8 -N 8 "$1"))) "$1" | sha256sum | cut -d ' ' -f 1
}
for name in "${point[@]}"; do
  a=$(tensors "array/runs/$name/checkpoint.safetensors") b=$(tensors "plain/runs/$name/checkpoint.safetensors")
  [ "$a" = "$b" ] || { keep=yes; die "$name: other tensors than without Slurm"; }
  attempts=$(awk -v name="$name" '$1 == "\"name\":" {at = index($2, name) > 0} at && $1 == "\"attempts\":" {print $2 + 0}' summary.json)
  echo "$name: same bytes ($a), begun $attempts times" >&2
done
say "every point finished, with the tensors of the sweep without Slurm"

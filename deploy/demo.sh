#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# The main job, shown on two nodes of this machine: an unmodified LMDB program commits through a mapping, its node is killed in the
# middle, and the other node's backing directory is opened with LMDB and holds every commit that the program saw acknowledged.
#   deploy/demo.sh [COMMITS]     after quickstart.sh has built; needs root, /dev/fuse and network namespaces
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

commits=${1:-200}
pmirror=build/bin/pmirror
writer=build/apps/lmdb_writer
limit_seconds=60

say() { printf '\n== %s\n' "$*"; }
fail() {
  echo "demo: $*" >&2
  exit 1
}

[[ $(id -u) -eq 0 ]] || fail "the demo mounts file systems and makes network namespaces: run it as root"
[[ -c /dev/fuse ]] || fail "there is no /dev/fuse here: load the fuse module (modprobe fuse)"
for program in "${pmirror}" "${writer}"; do
  [[ -x "${program}" ]] || fail "${program} is not built: run ./quickstart.sh"
done

scratch=$(mktemp -d)
sandbox="${scratch}/sandbox"
writer_pid=
cleanup() {
  [[ -z "${writer_pid}" ]] || kill "${writer_pid}" 2>/dev/null || true
  "${pmirror}" sandbox down "${sandbox}" >/dev/null 2>&1 || true
  rm -rf --one-file-system "${scratch}"
}
trap cleanup EXIT

# field EXPRESSION: a value of the first volume's state, `v`, that `sandbox up` printed.
field() {
  python3 -c 'import json, sys
v = json.JSONDecoder().raw_decode(open(sys.argv[1]).read().lstrip())[0]
v = v[0] if isinstance(v, list) else v
primary = next(n for n in v["nodes"] if n["name"] == v["primary"])
replica = next(n for n in v["nodes"] if n["name"] != v["primary"])
print(eval(sys.argv[2]))' "${scratch}/state.json" "$1"
}

say "two nodes, each in a network namespace of its own"
"${pmirror}" sandbox up "${sandbox}" --nodes 2 --netns >"${scratch}/state.json" || fail "the sandbox did not come up"
primary=$(field 'primary["name"]')
replica=$(field 'replica["name"]')
mount=$(field 'primary["mount"]')
backing=$(field 'replica["backing"]')
echo "${primary} has the volume mounted at ${mount}"
echo "${replica} keeps the copy in ${backing}"

say "an unmodified LMDB program (MDB_WRITEMAP) commits on ${primary}"
mkfifo "${scratch}/acknowledged"
"${pmirror}" run --sandbox "${sandbox}" -- "$(realpath "${writer}")" write --writemap "${mount}/ledger" \
  >"${scratch}/acknowledged" 2>"${scratch}/writer.log" &
writer_pid=$!
# Each line is the number of a commit whose mdb_txn_commit() has returned. At the wanted one we kill, and go on reading: what the program
# still managed to acknowledge meanwhile must be on the replica as well.
last=0
killed=
exec 3<"${scratch}/acknowledged"
while read -r -t "${limit_seconds}" number <&3; do
  last=${number}
  if [[ -z "${killed}" && "${last}" -ge "${commits}" ]]; then
    "${pmirror}" sandbox kill "${sandbox}" "${primary}"
    killed=yes
  fi
done
exec 3<&-
wait "${writer_pid}" 2>/dev/null || true
writer_pid=
[[ -n "${killed}" ]] || { cat "${scratch}/writer.log" >&2; fail "the program stopped after ${last} commits, before ${primary} was killed"; }
echo "killed ${primary} (SIGKILL: daemon and program) after commit ${last} was acknowledged"

say "what ${replica} has"
ls -l "${backing}/ledger"
# The checker opens a copy, so that looking changes nothing on the replica.
cp -a "${backing}/ledger" "${scratch}/found"
"${writer}" check "${scratch}/found" "${last}" || fail "the replica does not hold the ${last} acknowledged commits"

say "done: every one of the ${last} acknowledged commits is on ${replica}"

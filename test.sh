#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Builds and runs the tests: everything in build/, then the unit and model tests under address and undefined-behaviour sanitizers
# (build-asan/), then the tests labelled tsan under the thread sanitizer (build-tsan/). Fails when a stage finds no test.
#   ./test.sh [--fast] [--vm]
#     --fast  only the first stage
#     --vm    the guest tests too (not there yet: refused)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage="usage: ./test.sh [--fast] [--vm]"
stages=(release asan tsan)
for argument in "$@"; do
  case "${argument}" in
    --fast) stages=(release) ;;
    --vm)
      echo "test.sh: there are no guest tests yet; they come with the RDMA transport. Run ./test.sh without --vm." >&2
      exit 1
      ;;
    -h | --help)
      echo "${usage}"
      exit 0
      ;;
    *)
      echo "test.sh: unknown argument '${argument}'. ${usage}" >&2
      exit 2
      ;;
  esac
done

jobs=$(nproc)
logs=$(mktemp -d)
trap 'rm -rf "${logs}"' EXIT

# Says why the cluster tests cannot run here, or nothing when they can.
why_no_cluster() {
  local probe="pmirror-probe-$$"
  [[ $(id -u) -eq 0 ]] || { echo "this user is not root"; return; }
  [[ -c /dev/fuse ]] || { echo "there is no /dev/fuse"; return; }
  ip netns add "${probe}" 2>/dev/null || { echo "network namespaces cannot be made"; return; }
  ip netns delete "${probe}"
}

# run_stage NAME [CTEST_ARGUMENT...]: configures, builds and tests one preset. Cluster tests take the machine for themselves (RUN_SERIAL).
run_stage() {
  local name=$1
  shift
  echo "== ${name}: build"
  cmake --preset "${name}" >"${logs}/configure" || { cat "${logs}/configure"; return 1; }
  cmake --build --preset "${name}" -j "${jobs}" || return 1
  echo "== ${name}: test"
  ctest --preset "${name}" -j "${jobs}" "$@" 2>&1 | tee "${logs}/${name}"
}

skipped=
arguments=()
reason=$(why_no_cluster)
if [[ -n "${reason}" ]]; then
  [[ "${CI:-}" != true ]] || { echo "test.sh: the cluster tests cannot run: ${reason}" >&2; exit 1; }
  skipped="test.sh: the cluster tests were NOT run: ${reason}"
  arguments=(-LE cluster)
fi

failed=()
run_stage release "${arguments[@]}" || failed+=(release)
for stage in "${stages[@]:1}"; do
  run_stage "${stage}" || failed+=("${stage}")
done

# The runners' own closing lines come last, stage after stage.
echo
[[ -z "${skipped}" ]] || echo "${skipped}"
[[ ${#failed[@]} -eq 0 ]] || echo "test.sh: failed: ${failed[*]}"
for stage in "${stages[@]}"; do
  echo "== ${stage}"
  if [[ -s "${logs}/${stage}" ]]; then
    sed -n '/tests passed/,$p; /^No tests were found/p' "${logs}/${stage}"
  else
    echo "not built"
  fi
done
[[ ${#failed[@]} -eq 0 ]]

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# From a fresh clone to the main job at work: installs what is missing, builds to build/, and runs deploy/demo.sh.
#   ./quickstart.sh [--build-only]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage="usage: ./quickstart.sh [--build-only]"
build_only=
for argument in "$@"; do
  case "${argument}" in
    --build-only) build_only=yes ;;
    -h | --help)
      echo "${usage}"
      exit 0
      ;;
    *)
      echo "pmirror: unknown argument '${argument}'. ${usage}" >&2
      exit 2
      ;;
  esac
done

deploy/install_packages.sh
cmake --preset release
cmake --build --preset product

for product in bin/pmirror bin/pmirrord lib/libpmirror_preload.so lib/libpmirror.so; do
  if [[ ! -e "build/${product}" ]]; then
    echo "pmirror: the build ended without build/${product}" >&2
    exit 1
  fi
done
echo "pmirror: built build/bin/pmirror, build/bin/pmirrord, build/lib/libpmirror_preload.so, build/lib/libpmirror.so"
[[ -n "${build_only}" ]] || exec deploy/demo.sh

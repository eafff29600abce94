#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Runs clang-tidy with the tree's .clang-tidy on the sources that differ from a commit, or on all.
#   tests/style/tidy.sh [BUILD_DIR] [--all | --since COMMIT]      BUILD_DIR has compile_commands.json; default: build
# A changed header counts through the sources of its folder, because clang-tidy looks at headers from a source.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

build=build
all=
since=HEAD
while [[ $# -gt 0 ]]; do
  case "$1" in
    --all) all=yes ;;
    --since)
      since=${2:?--since needs a commit}
      shift
      ;;
    *) build=$1 ;;
  esac
  shift
done
[[ -f "${build}/compile_commands.json" ]] ||
  { echo "tidy.sh: ${build} has no compile_commands.json: configure it first (cmake --preset release)" >&2; exit 2; }

changed() {
  git diff --name-only --diff-filter=d "${since}" -- '*.cc' '*.c' '*.h'
  git ls-files --others --exclude-standard -- '*.cc' '*.c' '*.h'
}

sources() {
  if [[ -n "${all}" ]]; then
    git ls-files --cached --others --exclude-standard -- '*.cc' '*.c'
    return
  fi
  changed | while read -r path; do
    case "${path}" in
      *.h) find "$(dirname "${path}")" -maxdepth 1 \( -name '*.cc' -o -name '*.c' \) ;;
      *) echo "${path}" ;;
    esac
  done
}

mapfile -t files < <(sources | sort -u)
if [[ ${#files[@]} -eq 0 ]]; then
  echo "tidy.sh: no source differs from ${since}"
  exit 0
fi
# run-clang-tidy takes regular expressions that match the end of the absolute path.
patterns=()
for file in "${files[@]}"; do
  patterns+=("^${PWD}/${file//./\\.}\$")
done
echo "tidy.sh: ${#files[@]} files"
run-clang-tidy -quiet -p "${build}" -j "$(nproc)" "${patterns[@]}"

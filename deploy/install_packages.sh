#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Installs what deploy/packages.txt names and this machine does not have. Asks nothing, and touches nothing when nothing is missing.
set -euo pipefail
list="$(dirname "${BASH_SOURCE[0]}")/packages.txt"

fail() {
  echo "pmirror: $*" >&2
  exit 1
}

is_installed() {
  [[ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]
}

command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
  fail "this is not a Debian system (no apt-get): install by hand what ${list} names, then run cmake --preset release"

missing=()
while read -r package; do
  is_installed "${package}" || missing+=("${package}")
done < <(grep -v '^#' "${list}")
[[ ${#missing[@]} -eq 0 ]] && exit 0

as_root=()
if [[ $(id -u) -ne 0 ]]; then
  # Without a terminal nobody could answer sudo's question for a password.
  if command -v sudo >/dev/null && { [[ -t 0 ]] || sudo -n true 2>/dev/null; }; then
    as_root=(sudo)
  else
    fail "packages are missing, and neither root nor sudo is here to install them. As root: apt-get install ${missing[*]}"
  fi
fi

apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
echo "pmirror: installing ${missing[*]}"
"${apt[@]}" update </dev/null
"${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null ||
  fail "apt-get could not install: ${missing[*]}"

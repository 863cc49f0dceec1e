#!/usr/bin/env bash
# The interpreter's tests in real containers, and the pages' commands for Docker:
# tests/engines/docker.sh FOLDER_OF_PYTEST
#
# Uses the Docker engine that answers. Without one, root on Debian gets one by apt, which runs
# for the time of the tests only; its images stay in $MATHENV_ENGINES for the next time.
# Where no registry can be reached, debootstrap makes what python:3.12-slim would be.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=$1
state=${MATHENV_ENGINES:-/var/tmp/mathenv-engines}
build="docker build -q -t mathenv-interpreter -f mathenv/interpreter/Dockerfile"
export DOCKER_BUILDKIT=0 # BuildKit is a plugin that Debian's client lacks

skip() {
    printf '\n*** SKIPPED: the Docker tests. %s\n\n' "$1" >&2
    exit 0
}

started='' tagged=''
finish() {
    [[ -z $tagged ]] || docker rmi -f python:3.12-slim >/dev/null || true
    [[ -z $started ]] || { kill %1; wait %1 || true; umount -q "$state"/exec/netns/*; }
}
trap finish EXIT

install_engine() {
    [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null ||
        skip "No Docker engine answers, and only root on Debian can install one here."
    if ! type dockerd debootstrap >/dev/null; then
        apt-get -q update && apt-get install -qy --no-install-recommends docker.io debootstrap ||
            skip "apt cannot install docker.io and debootstrap."
    fi
}

start_engine() {
    mkdir -p "$state"
    export DOCKER_HOST=unix://$state/docker.sock
    # No bridge: the containers have no network, and making one would change the firewall.
    dockerd --data-root "$state/docker" --exec-root "$state/exec" --pidfile "$state/docker.pid" \
        --host "$DOCKER_HOST" --bridge none --iptables=false >"$state/dockerd.log" 2>&1 &
    started=yes
    for _ in {1..120}; do
        docker info >/dev/null 2>&1 && return
        kill -0 %1 2>/dev/null || break
        sleep 0.5
    done
    skip "dockerd does not start here: $(tail -n 3 "$state/dockerd.log")"
}

# The machine's certificates come along, so that pip in the build trusts whom pip here trusts.
import_base() {
    docker image inspect mathenv-test-base >/dev/null 2>&1 && return
    command -v debootstrap >/dev/null || skip "No registry answers and debootstrap is not here."
    rm -rf "$state/base"
    debootstrap --variant=minbase --include=python3,python3-pip bookworm "$state/base" >/dev/null ||
        skip "debootstrap failed, see $state/base/debootstrap/debootstrap.log"
    rm "$state"/base/usr/lib/python3*/EXTERNALLY-MANAGED
    ln -s ../../bin/python3 "$state/base/usr/local/bin/python"
    cp /etc/ssl/certs/ca-certificates.crt "$state/base/etc/ssl/certs/"
    tar -C "$state/base" -c . | docker import - mathenv-test-base
    rm -rf "$state/base"
}

if ! docker info >/dev/null 2>&1; then
    install_engine
    start_engine
fi
if docker image inspect python:3.12-slim >/dev/null 2>&1 || timeout 60 docker pull -q python:3.12-slim; then
    $build mathenv
else
    import_base
    $build --network host --build-arg PYTHON=mathenv-test-base mathenv
    # For the tests the base has the name that the pages' own build asks for: it finds all layers.
    docker tag mathenv-test-base python:3.12-slim
    tagged=yes
fi
MATHENV_TEST_ENGINES=docker "$bin/pytest" -q -n 2 -k docker \
    tests/mathenv tests/learners/test_sampling_settings.py tests/test_readme.py

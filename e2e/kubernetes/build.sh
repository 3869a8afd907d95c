#!/usr/bin/env bash
# Builds kube-apiserver, kube-controller-manager and kubectl at the versions that go.mod pins, once, and prints the folder. KUBEBUILDER_ASSETS, where set, is taken instead for those it has.
set -euo pipefail
cd "$(dirname "$0")"
go=$(command -v /usr/local/go/bin/go || command -v go || command -v ../../target/tools/go/bin/go)
# Built with Go 1.27 the API server's /openapi/v2 is damaged: another Go fetches the right one.
case $($go env GOVERSION) in go1.26*) toolchain=local ;; *) toolchain=go1.26.8 ;; esac
export GOTOOLCHAIN=$toolchain GOFLAGS="-buildvcs=false -trimpath -mod=readonly" CGO_ENABLED=0
version=$($go list -m -f '{{.Version}}' k8s.io/kubernetes)
sum=$(cat go.mod go.sum $(find cmd -name '*.go' | sort) | sha256sum | cut -c1-12)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/isthmus/kubernetes/$version-$sum
mkdir -p "$folder"
IFS=. read -r major minor _ <<<"${version#v}"
base=k8s.io/component-base/version
flags="-s -w -X $base.gitVersion=$version -X $base.gitMajor=$major -X $base.gitMinor=$minor -X $base.gitTreeState=clean"
# The last one is the one that tells a complete folder.
for program in kubectl kube-apiserver kube-controller-manager; do
	[ -x "$folder/$program" ] && continue
	if [ -n "${KUBEBUILDER_ASSETS:-}" ] && [ -x "$KUBEBUILDER_ASSETS/$program" ]; then continue; fi
	echo "building $program $version: minutes when nothing is cached" >&2
	$go build -ldflags "$flags" -o "$folder/$program.part" "./cmd/$program"
	mv "$folder/$program.part" "$folder/$program"
done
echo "$folder"
